"""A choice's tokens as text while they come: piece by piece, up to the first stop string."""

from collections.abc import Sequence
from functools import cache

from tokenizers.decoders import DecodeStream

from distill.text.tokenizer import Tokenizer


class Text:
    """Pieces of one choice's text. Joined, they are what `Tokenizer.decode` makes of all its ids.

    A piece never ends inside a character, nor inside what may become a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.hold = max(map(len, stop), default=1) - 1
        self.stream = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.known = ""  # text of all ids, but for an unfinished character
        self.told = 0  # characters of it that were given
        self.stopped = False

    def add(self, ids: Sequence[int], last: bool) -> str:
        """The text that is certain now; `ids` leave out the one that ended the choice."""
        at_once = last and not self.ids
        self.ids += ids
        if not at_once:
            for token in ids:
                self.known += self.stream.step(self.tokenizer.rules, token) or ""
        if last and (whole := self.tokenizer.decode(self.ids)).startswith(self.known):
            self.known = whole
        found = [at for s in self.stop if (at := self.known.find(s, max(0, self.told - len(s) + 1))) >= 0]
        if found:
            self.stopped, self.known = True, self.known[: min(found)]
        end = len(self.known) - (0 if last or found else self.hold)
        piece = self.known[self.told : end]
        self.told = max(self.told, end)
        return piece


def token_names(tokenizer: Tokenizer):
    """A function that gives a single token's text, special ones included."""

    @cache
    def name(token: int) -> str:
        return tokenizer.decode([token], special=True)

    return name
