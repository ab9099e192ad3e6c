"""Two vocabularies side by side: tokens that are spelled alike, and what the others begin with."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from distill.text.tokenizer import Tokenizer

Spelling = bytes | str | None  # a control token is a str, which no text is equal to
END = "the end of a turn"


class Classes(NamedTuple):
    """One side's tokens by class: `of` is the class of each id, −1 where it has none; `roots` has for each class
    the id that is spelled like it, `others` the ids of the rest, in the order of ids."""

    of: Int[np.ndarray, "V"]
    roots: Int[np.ndarray, "C"]
    others: Int[np.ndarray, "N"]


class Shared(NamedTuple):
    """Classes of tokens that teacher and student have in common, with the same numbers on both sides.

    A class is a spelling that is a token of both. A token that is none of them belongs to the longest one that it
    begins with: with `Par` in both and `Paris`, `Parade` in one, all three are class `Par`, the text that goes on
    with `Par`. Control tokens are matched by name, the ends of a turn with each other. A token without any such
    beginning has no class. spelled: of each class.
    """

    teacher: Classes
    student: Classes
    spelled: tuple["Spelling", ...]


def shared_classes(teacher: Tokenizer, student: Tokenizer) -> Shared:
    """The classes of two tokenizers."""
    return shared_of(spellings(teacher), spellings(student))


def shared_of(teacher: list[Spelling], student: list[Spelling]) -> Shared:
    """The classes of two vocabularies, each with the spelling of every id."""
    sides = teacher, student
    firsts = [{spelling: i for i, spelling in reversed(list(enumerate(side)))} for side in sides]
    both = sorted((firsts[0].keys() & firsts[1].keys()) - {None}, key=firsts[1].__getitem__)
    number = {spelling: i for i, spelling in enumerate(both)}
    return Shared(*(_classes(side, number, first) for side, first in zip(sides, firsts, strict=True)), tuple(both))


def _classes(side: list[Spelling], number: dict[Spelling, int], first: dict[Spelling, int]) -> Classes:
    of = np.asarray([next((number[part] for part in _beginnings(word) if part in number), -1) for word in side])
    roots = np.asarray([first[spelling] for spelling in number], np.int32)
    rest = of >= 0
    rest[roots] = False
    return Classes(of.astype(np.int32), roots, np.flatnonzero(rest).astype(np.int32))


def _beginnings(spelling: Spelling) -> Iterator[Spelling]:
    """The whole, and of text what is shorter and shorter."""
    yield spelling
    if isinstance(spelling, bytes):
        yield from (spelling[:n] for n in range(len(spelling) - 1, 0, -1))


def spellings(tokenizer: Tokenizer) -> list[Spelling]:
    """For each id the bytes that it writes, the name of a control token, or None where it has no token.

    Known are byte-level vocabularies (GPT-2's alphabet of bytes), those that write a space as `▁`, with bytes as
    `<0x0A>`, and those that write text as it is. An empty token has none.
    """
    kinds = set(_kinds(tokenizer.rules))
    added = tokenizer.rules.get_added_tokens_decoder()
    found: list[Spelling] = [None] * tokenizer.real_vocab
    for token, i in tokenizer.rules.get_vocab().items():
        if i in added:
            found[i] = added[i].content if added[i].special else added[i].content.encode()
        elif "ByteLevel" in kinds:
            known = all(letter in BYTES for letter in token)
            found[i] = bytes(BYTES[letter] for letter in token) if known else None
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x"):
            found[i] = bytes([int(token[3:5], 16)])
        else:
            found[i] = token.replace("▁", " ").encode()
    for i in tokenizer.eos_ids:
        if i < len(found):
            found[i] = END
    return [spelling or None for spelling in found]


def _kinds(rules: Any) -> Iterator[str]:
    """Names of the steps that a tokenizer's decoder and pre-tokenizer are made of."""
    whole = json.loads(rules.to_str())
    left = [whole["decoder"], whole["pre_tokenizer"]]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part.get("type", "")
            left += part.values()
        elif isinstance(part, list):
            left += part


def _byte_letters() -> dict[str, int]:
    """The letter of each byte in byte-level vocabularies: itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


BYTES = _byte_letters()
