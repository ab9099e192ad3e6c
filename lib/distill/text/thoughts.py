"""Which tokens of an answer are thought: what a reasoning model writes up to `</think>`."""

from collections.abc import Sequence

from distill.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


def without_thoughts(tokenizer: Tokenizer, ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """`mask` with 0 for the thought that each learned stretch of `ids` starts with: it is read, and not learned.

    ids `<think> hm </think> \\n yes EOS`, mask 1 1 1 1 1 1 → 0 0 0 0 1 1
    """
    mask = list(mask)
    start = 0
    while start < len(mask):
        end = start
        while end < len(mask) and mask[end]:
            end += 1
        if end > start:
            count = thought_tokens(tokenizer, ids[start:end])
            mask[start : start + count] = [0] * count
        start = end + 1
    return mask


def thought_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many of an answer's ids are thought, the white space behind it included; all of them where it has no end.

    A token that holds the end of the thought and more is thought.
    """

    def text(part: Sequence[int]) -> str:
        return tokenizer.decode(part, special=True)

    whole = text(ids)
    ends = whole.count(CLOSE)
    if not ends:
        return len(ids) if whole.lstrip().startswith(OPEN) else 0
    low, high = 1, len(ids)  # the fewest ids with all ends in them
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if text(ids[:middle]).count(CLOSE) == ends else (middle + 1, high)
    while low < len(ids) and ids[low] not in tokenizer.eos_ids and not text(ids[low : low + 1]).strip():
        low += 1
    return low
