"""The parts of a stage that are settings of their own."""

import math
from typing import Literal

from pydantic import Field, model_validator

from distill.config.generation import Sampling
from distill.config.prompts import Source
from distill.config.settings import Settings
from distill.files import digest

MADE_HERE = ("generated", "original")  # data that a recipe's own prompts give


class Part(Source):
    """A source of a stage's data: `generated`, `original`, or a dataset of conversations that have answers."""

    weight: float | None = Field(None, gt=0, description="share of the rows; in proportion to its size when left out")
    rows: int | None = Field(None, gt=0, description="take the first so many conversations")
    samples: int | None = Field(None, gt=0, description="take the first so many answers to a prompt")
    corrupt: float = Field(0.0, ge=0, le=1, description="share of the prompts that get another one's answer: a control")

    @property
    def in_words(self) -> str:
        """Its source, with what is done to it."""
        done = [f"the first {self.rows:,}"] if self.rows else []
        done += [f"{self.samples} a prompt"] if self.samples else []
        done += [f"{self.corrupt:g} corrupted"] if self.corrupt else []
        name = f"{self.weight:g} {self.source}" if self.weight else self.source
        return f"{name} ({', '.join(done)})" if done else name

    @property
    def id8(self) -> str:
        """Eight hex digits of what decides which rows the source has."""
        return digest(self.model_dump(exclude={"weight", "rows", "samples", "corrupt"}))[:8]

    @property
    def published(self) -> bool:
        """Whether it is a dataset of its own, apart from the recipe's prompts."""
        return self.source not in MADE_HERE

    @model_validator(mode="after")
    def _plain(self) -> "Part":
        if not self.published and (odd := self.model_fields_set - {"source", "weight", "rows", "samples", "corrupt"}):
            changed = [name for name in sorted(odd) if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(f"{self.source} is made by the recipe and has no {', '.join(changed)}: leave it out")
        return self


class Lora(Settings):
    """Low-rank adapters (arXiv 2106.09685) are trained in place of the weights, and merged into them at the end."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0, description="what A·B is multiplied by, times the rank")
    targets: tuple[str, ...] | None = Field(
        None, description="weights of a layer, such as q, v; all of attention and feed-forward when left out"
    )


class MeshShape(Settings):
    """Devices along each axis; one axis may be -1, which fills it. Left out, `fsdp` is filled."""

    data: int = 1
    fsdp: int | None = None
    expert: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """Every axis with its size."""
        others = {"data": self.data, "expert": self.expert, "tensor": self.tensor}
        return others | {"fsdp": (1 if -1 in others.values() else -1) if self.fsdp is None else self.fsdp}

    @model_validator(mode="after")
    def _sizes(self) -> "MeshShape":
        sizes = self.sizes
        if odd := {axis: size for axis, size in sizes.items() if size < 1 and size != -1}:
            axis, size = next(iter(odd.items()))
            raise ValueError(f"{axis} is {size}: give 1 or more devices, or -1 for all that are left")
        if len(open_axes := [axis for axis, size in sizes.items() if size == -1]) > 1:
            raise ValueError(f"{' and '.join(open_axes)} are both -1: one axis can take what is left")
        return self


class Schedule(Settings):
    """A number that goes from `start` at the first step to `end` at the last."""

    start: float
    end: float
    kind: Literal["constant", "linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _still(self) -> "Schedule":
        if self.kind == "constant" and self.start != self.end:
            raise ValueError(f"constant does not go from {self.start:g} to {self.end:g}: take linear or cosine")
        return self

    @classmethod
    def of(cls, value: "float | Schedule") -> "Schedule":
        """A number as a schedule that stays there."""
        return value if isinstance(value, Schedule) else cls(start=value, end=value, kind="constant")

    def __str__(self) -> str:
        return f"{self.start:g}" if self.start == self.end else f"{self.start:g} to {self.end:g}"

    def at(self, step: int, steps: int) -> float:
        """The number at a step, from 1 to `steps`."""
        done = (step - 1) / max(1, steps - 1)
        share = (1 - math.cos(math.pi * done)) / 2 if self.kind == "cosine" else done
        return self.start + share * (self.end - self.start)


Number = float | Schedule


class OnPolicy(Settings):
    """The student's own completions in place of the data's (GKD, arXiv 2306.13649), drawn from its weights as they
    are at that step. They have the divergence alone for a loss, whatever `alpha`."""

    share: float = Field(0.5, gt=0, le=1, description="λ: share of the batches that the student completes itself")
    sampling: Sampling = Sampling()
    slots: int = Field(64, gt=0, description="completions drawn together")


class HiddenStates(Settings):
    """What layers of the student give is drawn towards what layers of the teacher give, beside the objective.

    Where the widths differ, a matrix is learned that leads from one to the other; it is not part of the student.
    """

    layers: Literal["even"] | dict[int, int] = Field(
        "even", description="{student's: teacher's}, the first is 0; even: every one of the student's, last on last"
    )
    loss: Literal["cosine", "mse"] = "cosine"
    weight: float = Field(1.0, gt=0)
