"""What teacher and student have in common, and which objectives that opens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill import SCHEMA_VERSION
from distill.errors import DistillError
from distill.files import read_json
from distill.text.spelling import shared_classes
from distill.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Side:
    """One model of the pair: its tokenizer, and the rows of its embedding."""

    tokenizer: Tokenizer
    rows: int

    def describe(self) -> dict[str, Any]:
        """What compatibility.json says of it; `padded_rows` are rows that no token has."""
        tokenizer = self.tokenizer
        return {
            "vocab_size": self.rows,
            "real_vocab": tokenizer.real_vocab,
            "padded_rows": self.rows - tokenizer.real_vocab,
            "eos_ids": list(tokenizer.eos_ids),
            "bos_id": tokenizer.bos_id,
            "pad_id": tokenizer.pad_id,
            "tokenizer_hash": tokenizer.hash,
            "chat_template": tokenizer.chat_template is not None,
        }


def compare(teacher: Path, student: Path) -> dict[str, Any]:
    """Compare two params folders; what compatibility.json holds."""
    one, two = _side(teacher), _side(student)
    checks = [
        _token_maps(one.tokenizer, two.tokenizer),
        _special_tokens(one.tokenizer, two.tokenizer),
        _chat_templates(one.tokenizer, two.tokenizer),
        _numbers("real_vocabulary", one.tokenizer.real_vocab, two.tokenizer.real_vocab, "ids known"),
        _numbers("padded_vocabulary", one.rows, two.rows, "rows of the embedding"),
    ]
    same_tokens = checks[0]["equal"]
    return {
        "schema": SCHEMA_VERSION,
        "teacher": one.describe(),
        "student": two.describe(),
        "checks": checks,
        "objectives": _objectives(one, two, same_tokens, checks[0]["detail"]),
    }


def must_be_open(objectives: dict[str, str], found: dict[str, Any]) -> None:
    """Refuse objectives, by stage, that the pair of `compare` is not open to, and name those that are."""
    known = found["objectives"]
    for stage, objective in objectives.items():
        if not known[objective]["open"]:
            others = ", ".join(name for name, value in known.items() if value["open"])
            raise DistillError(
                f"stage {stage}: objective {objective} is not open to this teacher and student, "
                f"{known[objective]['why']}: take one of {others}"
            )


def _side(params: Path) -> Side:
    model = read_json(params / "model.json")
    return Side(load_tokenizer(params / "tokenizer"), model["vocab_size"])


def _objectives(teacher: Side, student: Side, same_tokens: bool, detail: str) -> dict[str, dict[str, Any]]:
    """Text goes from any tokenizer to any other; a distribution over ids needs the ids to mean the same, or to be
    spelled alike."""
    text = "the student learns from text, in its own tokens"
    if student.tokenizer.chat_template is None:
        text += "; it has no chat template: chat_template none"
    if same_tokens:
        ids = "every id means the same to both; rows without a token are left out"
    else:
        ids = f"ids do not mean the same to both ({detail})"
    return {
        "sft": {"open": True, "why": text},
        "logits": {"open": same_tokens, "why": ids},
        "topk_logits": {"open": same_tokens, "why": ids},
        "on_policy": {"open": same_tokens, "why": ids},
        "aligned_logits": _aligned(teacher.tokenizer, student.tokenizer, same_tokens),
    }


def _aligned(teacher: Tokenizer, student: Tokenizer, same_tokens: bool) -> dict[str, Any]:
    """Open to all whose vocabularies have text in common: how much, is said."""
    if same_tokens:
        return {"open": True, "why": "every id means the same to both: logits is exact and costs less"}
    shared = shared_classes(teacher, student)
    alike, text = len(shared.student.roots), sum(isinstance(word, bytes) for word in shared.spelled)
    if not text:
        return {"open": False, "why": "no token of text is spelled alike in both"}
    placed = [f"{np.count_nonzero(side.of >= 0):,} of {len(side.of):,}" for side in shared[:2]]
    why = f"approximate: {alike:,} tokens are spelled alike, {' and '.join(placed)} are one of them or begin with one"
    return {"open": True, "why": why}


def _check(name: str, equal: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "equal": equal, "detail": detail}


def _token_maps(one: Tokenizer, two: Tokenizer) -> dict[str, Any]:
    first, second = one.hf.get_vocab(), two.hf.get_vocab()
    equal = first == second
    shared = sum(second.get(token) == i for token, i in first.items())
    detail = f"{shared:,} tokens have the same id in both, of {len(first):,} and {len(second):,}"
    return _check("token_maps", equal, f"all {len(first):,} tokens have the same id" if equal else detail)


def _special_tokens(one: Tokenizer, two: Tokenizer) -> dict[str, Any]:
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    different = [
        f"{name} {getattr(one.hf, name)!r} and {getattr(two.hf, name)!r}"
        for name in names
        if getattr(one.hf, name) != getattr(two.hf, name)
    ]
    if one.eos_ids != two.eos_ids:
        different.append(f"ends of a turn {list(one.eos_ids)} and {list(two.eos_ids)}")
    return _check("special_tokens", not different, "; ".join(different) or "the same names and ids")


def _chat_templates(one: Tokenizer, two: Tokenizer) -> dict[str, Any]:
    first, second = one.chat_template, two.chat_template
    detail = "the same" if first else "neither has one"
    if first != second:
        missing = [side for side, template in (("teacher", first), ("student", second)) if not template]
        detail = f"the {missing[0]} has none" if missing else "each writes a conversation its own way"
    return _check("chat_templates", first == second, detail)


def _numbers(name: str, one: int, two: int, what: str) -> dict[str, Any]:
    return _check(name, one == two, f"{one:,} {what}" if one == two else f"{one:,} and {two:,} {what}")
