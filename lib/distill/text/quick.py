"""Ids of many texts by `fastokens` where it is installed: those of `tokenizers`, in a tenth of the time.

It is younger, and the ids that count are those of `tokenizers`. So it is taken for a tokenizer only when it gives the
same ones for `PROBES`; one text in `CHECKED` of each batch is compared; and where one differs, `tokenizers` does the
batch again and all that follows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECKED = 64
WORDS = (
    "", " ", "a", "It's the cat’s I'LL don't", "one  two   three\t\tfour\n\nfive\r\n six ",
    "1234567 0.5 1,000 2026-01-02", "def f(x):\n    return {'a': x[0]} # ok!\n", "naïve Ünïcode ﬁ ① e\u0301 é",
    "Привет, мир! ёж", "你好世界，漢字とカナ。", "مرحبا بالعالم", "हिन्दी भाषा", "😀👩\u200d👧🏽🇩🇪",
    "\u200b\u200d\u00a0\u2028\ufeff\x00\x07", "https://a.b/c?d=e&f=%20", "x" * 300,
)  # fmt: skip


class Quick:
    """Both tokenizers of one kind. Special tokens that a text spells out are taken as such; none are added."""

    def __init__(self, exact: "Tokenizer", other: Any):
        self.exact, self.other = exact, other

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if self.other is not None:
            found = _ids(self.other, texts)
            some = range(len(texts) // 2 % CHECKED, len(texts), CHECKED)
            if found is not None and [found[i] for i in some] == _ids(self.exact, [texts[i] for i in some]):
                return found
            self.other = None
        return [encoding.ids for encoding in self.exact.encode_batch(list(texts), add_special_tokens=False)]


def quick(exact: "Tokenizer") -> Quick | None:
    """None where `fastokens` is not there, does not know this kind of tokenizer, or gives other ids."""
    try:
        from fastokens import Tokenizer as Other
    except ImportError:
        return None
    try:
        other = Other.from_json_str(exact.to_str())
    except BaseException as error:  # what it does not know may be a panic, which is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None
    control = [token.content for token in exact.get_added_tokens_decoder().values()][:64]
    probes = [*WORDS, "".join(WORDS), *control, *(f" {token}\n{token}user {token}x" for token in control)]
    return Quick(exact, other) if _ids(other, probes) == _ids(exact, probes) else None


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]] | None:
    """None where the tokenizer breaks."""
    try:
        return [list(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None
