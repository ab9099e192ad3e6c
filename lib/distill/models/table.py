"""The weight table: one row a weight, read in both directions.

A row says `ours`, the dotted path in the unscanned tree; `theirs`, the tensor's name in safetensors; and
`view`, their shape written in our axes, merged axes in brackets:

    Row("layers.{layer}.attention.q", "model.layers.{layer}.self_attn.q_proj.weight", "(N H) D")

Ours is `N H D`, theirs [N·H, D]: a reshape. Values are never transposed, so both ways are bit-exact.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from distill.models.config import ModelConfig


@dataclass(frozen=True)
class Row:
    """One weight of every layer that has it.

    `{layer}` stands for the layer's number, `{expert}` for the expert's: our leading axis E is then spread
    over as many tensors. `part`: theirs is fused of several weights stacked along its first axis; which
    one is ours, and the axes of all of them.
    """

    ours: str
    theirs: str
    view: str
    part: tuple[int, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Weight:
    """A row filled in for one layer: what is read from, or written to, where.

    Their tensors have `their_shape`; ours is their rows `offset : offset + rows`, reshaped to `shape`
    (for a weight of experts, one tensor an expert along our first axis).
    """

    ours: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    view: tuple[tuple[str, ...], ...]
    their_shape: tuple[int, ...]
    offset: int
    rows: int
    per_expert: bool


def merged_axes(view: str) -> tuple[tuple[str, ...], ...]:
    """`(N H) D` → (("N", "H"), ("D",))"""
    return tuple(tuple(part.strip("()").split()) for part in re.findall(r"\([^)]*\)|\S+", view))


def weights(config: ModelConfig, rows: Iterable[Row], axes: dict[str, str]) -> Iterator[Weight]:
    """Every weight of a model, in the order of `axes`: what the decoder declares, each by its row."""
    by_pattern, sizes = {row.ours: row for row in rows}, config.sizes
    for path, names in axes.items():
        layer = path.split(".")[1] if path.startswith("layers.") else ""
        row = by_pattern[re.sub(r"^layers\.\d+\.", "layers.{layer}.", path)]
        view = merged_axes(row.view)
        their_shape = tuple(math.prod(sizes[axis] for axis in group) for group in view)
        offset, count = 0, their_shape[0]
        if row.part is not None:
            lengths = [math.prod(sizes[axis] for axis in part.split()) for part in row.part[1]]
            offset, their_shape = sum(lengths[: row.part[0]]), (sum(lengths), *their_shape[1:])
        theirs = row.theirs.replace("{layer}", layer)
        per_expert = "{expert}" in theirs
        yield Weight(
            ours=path,
            axes=tuple(names.split()),
            shape=tuple(sizes[axis] for axis in names.split()),
            theirs=tuple(theirs.replace("{expert}", str(e)) for e in range(sizes["E"] if per_expert else 1)),
            view=view,
            their_shape=their_shape,
            offset=offset,
            rows=count,
            per_expert=per_expert,
        )
