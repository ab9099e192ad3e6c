"""What an experiment does to a stage's data: fewer samples of a prompt, answers that belong to other prompts."""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice

from distill.config.training import Part
from distill.text.chat import Messages, prompt_id


def first_samples(prompts: Iterable[Hashable], samples: int) -> list[bool]:
    """For each row, by its prompt: whether it is among the first `samples` of that prompt."""
    seen: Counter[Hashable] = Counter()
    taken = []
    for prompt in prompts:
        taken.append(seen[prompt] < samples)
        seen[prompt] += 1
    return taken


def donors(prompts: Sequence[str], share: float) -> dict[int, int]:
    """{row: the row whose answer it gets}, for that share of the prompts, by hash.

    The answers go round among the rows that are chosen, so that there are no others than before; a larger share
    has the prompts of a smaller one. A row gets the answer of another prompt, if another one is chosen at all.
    """

    def drawn(prompt: str) -> bool:
        return int.from_bytes(blake2b(f"corrupt {prompt}".encode(), digest_size=8).digest(), "big") < share * 2**64

    rows = [i for i, prompt in enumerate(prompts) if drawn(prompt)]
    rows.sort(key=lambda i: prompts[i])  # a prompt's rows stand together: its largest group is the least turn
    turn = max(Counter(prompts[i] for i in rows).values(), default=0)
    return {row: rows[(place + turn) % len(rows)] for place, row in enumerate(rows)}


def transformed(conversations: Iterable[Messages], part: Part) -> Iterator[Messages]:
    """Conversations with `part.rows`, `part.samples` and `part.corrupt` applied; as they are where none is set."""
    conversations = islice(conversations, part.rows)
    if part.samples is None and not part.corrupt:
        yield from conversations
        return
    rows = list(conversations)
    names = [prompt_id(messages[:-1]) for messages in rows]
    if part.samples is not None:
        taken = first_samples(names, part.samples)
        rows, names = ([x for x, is_in in zip(both, taken, strict=True) if is_in] for both in (rows, names))
    giver = donors(names, part.corrupt)
    for i, messages in enumerate(rows):
        yield [*messages[:-1], rows[giver[i]][-1]] if i in giver else messages
