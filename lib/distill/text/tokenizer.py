"""A Hugging Face tokenizer from a folder, with what the pipeline needs to know of it beside it."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import DistillError
from distill.files import digest, read_json
from distill.text.quick import Quick, quick

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Rules
    from transformers import PreTrainedTokenizerFast

    from distill.checkpoints.info import ModelInfo

RULES = "tokenizer.json"
VOCABULARIES = (
    RULES,
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
)

MANY = 64  # texts from which it pays to have another tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back: `rules` do it. `hf` is the transformers tokenizer around them, which renders templates.

    `hash` covers what decides ids and rendering: vocabulary and rules, special tokens, chat template.
    `real_vocab` is the highest id that the tokenizer knows, plus one; a model may have more rows than that.
    `eos_ids` are all ids that end a turn: the tokenizer's own first, then those of the model's configuration.
    """

    folder: Path
    rules: "Rules"
    hash: str
    real_vocab: int
    eos_ids: tuple[int, ...]

    @cached_property
    def hf(self) -> "PreTrainedTokenizerFast":
        return _transformers(self.folder)

    @property
    def complete(self) -> bool:
        """Whether `hf` is there already: to import transformers takes a second."""
        return "hf" in self.__dict__

    @property
    def bos_id(self) -> int | None:
        return self.hf.bos_token_id

    @property
    def pad_id(self) -> int | None:
        return self.hf.pad_token_id

    @property
    def eos_id(self) -> int:
        """The id that ends a turn where the chat template does not."""
        return self.eos_ids[0]

    @cached_property
    def eos_texts(self) -> tuple[str, ...]:
        """`eos_ids` as they stand in rendered text."""
        return tuple(text for i in self.eos_ids if (text := self.rules.id_to_token(i)))

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Control tokens of all kinds as they stand in rendered text; `decode` leaves them out."""
        return tuple(token.content for token in self.rules.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text that renders a conversation (the default one of several), or None."""
        return self.hf.get_chat_template() if self.hf.chat_template else None

    @cached_property
    def adds_eos(self) -> bool:
        """Whether `encode(..., special=True)` ends with an EOS."""
        bare, around = self.encode("x", special=False), self.encode("x", special=True)
        return around[-1:] != bare[-1:] and around[-1] in self.eos_ids

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`; `special` adds what the tokenizer itself puts around it (BOS)."""
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Ids of each text, tokenized in parallel."""
        if not special and len(texts) >= MANY and self.quick is not None:
            return self.quick.encode_batch(texts)
        return [encoding.ids for encoding in self._call(texts, special)]

    @cached_property
    def quick(self) -> Quick | None:
        """The same ids sooner, where `fastokens` is installed and gives them."""
        return quick(self.rules)

    def encode_split(
        self, texts: Sequence[str], boundaries: Sequence[int], special: bool
    ) -> Iterator[tuple[list[int], int]]:
        """Ids of each text, and the index of the first token that ends past the boundary (in characters)."""
        for encoding, boundary in zip(self._call(texts, special), boundaries, strict=True):
            ids = encoding.ids

            def end(token: int, encoding: "Encoding" = encoding) -> int:
                return (encoding.token_to_chars(token) or (0, 0))[1]  # an added BOS is nowhere in the text

            stop = len(ids) - (special and self.adds_eos)
            yield ids, bisect_right(range(stop), boundary, key=end)

    def encode_marked(
        self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of each text, nothing put around it, and 1 for each that holds a part of a span (in characters)."""
        for encoding, marked in zip(self._call(texts, special=False), spans, strict=True):
            places = [encoding.token_to_chars(i) or (0, 0) for i in range(len(encoding.ids))]
            yield encoding.ids, [int(any(s < stop and e > start for start, stop in marked)) for s, e in places]

    def encode_placed(self, texts: Sequence[str], special: bool) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of each text, and for each where in it (in characters) it starts and ends; an added BOS is at 0, 0."""
        for encoding in self._call(texts, special):
            yield encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of `ids` with the spaces as they are; without special tokens, unless `special`."""
        return self.rules.decode(list(ids), skip_special_tokens=not special)

    def _call(self, texts: Sequence[str], special: bool) -> "list[Encoding]":
        return self.rules.encode_batch(list(texts), add_special_tokens=special)


def load_tokenizer(folder: Path, known: "ModelInfo | None" = None) -> Tokenizer:
    """Load the tokenizer in `folder`: local files only, none of the folder's own code is run.

    known: of the params folder that it lies in; where it has a plain tokenizer, transformers has nothing to add.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise DistillError(
            f"{folder} has no tokenizer (looked for {', '.join(VOCABULARIES)}): "
            "name where it lives in the model's `tokenizer`"
        )
    if known is not None and known.plain_tokenizer:
        return Tokenizer(folder, _plain(folder), known.tokenizer_hash, known.real_vocab, tuple(known.eos_ids))
    hf = _transformers(folder)
    eos_ids = _eos_ids(folder, hf.eos_token_id)
    if not eos_ids:
        raise DistillError(f"the tokenizer in {folder} has no EOS token: give eos_token in tokenizer_config.json")
    made = Tokenizer(folder, _whole(hf.backend_tokenizer), _hash(folder, hf), max(hf.get_vocab().values()) + 1, eos_ids)
    made.__dict__["hf"] = hf
    return made


def is_plain(tokenizer: Tokenizer) -> bool:
    """Whether its `tokenizer.json` alone has all its rules: transformers adds what other files know beside it."""
    if not (tokenizer.folder / RULES).is_file():
        return False
    from tokenizers.processors import TemplateProcessing

    alone, rules = _plain(tokenizer.folder), tokenizer.rules
    known = {alone.to_str()}
    if alone.post_processor is None:  # transformers writes down that nothing is added
        alone.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
        known.add(alone.to_str())
    return rules.to_str() in known and rules.encode_special_tokens == alone.encode_special_tokens


def _plain(folder: Path) -> "Rules":
    from tokenizers import Tokenizer as Rules  # clients load none

    return _whole(Rules.from_file(str(folder / RULES)))


def _whole(rules: "Rules") -> "Rules":
    """Rules that cut and pad nothing: a long prompt is ours to judge."""
    rules.no_truncation()
    rules.no_padding()
    return rules


def _transformers(folder: Path) -> "PreTrainedTokenizerFast":
    """A `tokenizer.json` is taken word for word. `AutoTokenizer` of transformers 5 is not asked: for
    `tokenizer_class: LlamaTokenizer` it rebuilds the rules, and `<s>[INST]` of Llama-2 then loses the `▁`
    that the model was trained with.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"; we need none
    whole = (folder / RULES).is_file()
    if whole:  # a second to import: only who loads one pays, and for AutoTokenizer, which is half of one more
        from transformers import PreTrainedTokenizerFast as Kind
    else:
        from transformers import AutoTokenizer as Kind
    try:
        hf = Kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise plain Exception for a broken file
        remedy = "" if whole else ": bring a tokenizer.json, or install what its format needs (sentencepiece, tiktoken)"
        raise DistillError(f"the tokenizer in {folder} cannot be read ({_one_line(error)}){remedy}") from None
    if not hf.is_fast:
        raise DistillError(f"the tokenizer in {folder} is a slow one ({type(hf).__name__}): bring a tokenizer.json")
    return hf


def _eos_ids(folder: Path, own: int | None) -> tuple[int, ...]:
    """The tokenizer's EOS, then those of generation_config.json and config.json, each once."""
    found = [own]
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in found if isinstance(i, int)))


def _hash(folder: Path, hf: "PreTrainedTokenizerFast") -> str:
    """Over the file as it is, not as the library writes it back, which may change with the library."""
    path = folder / RULES
    rules = read_json(path) if path.is_file() else hf.backend_tokenizer.to_str()
    if isinstance(rules, dict):
        rules = {key: value for key, value in rules.items() if key not in ("version", "truncation", "padding")}
    return digest(
        {
            "rules": rules,
            "special": hf.special_tokens_map,
            "added": {str(i): repr(token) for i, token in hf.added_tokens_decoder.items()},
            "template": hf.chat_template,
        }
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
