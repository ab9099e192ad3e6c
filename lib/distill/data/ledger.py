"""Where every prompt and every sample went: kept, or dropped for a reason, with sums that hold exactly."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill import SCHEMA_VERSION


@dataclass(frozen=True)
class Account:
    """`total` rows went in, each was kept or dropped for one reason. A false sum is a ValueError."""

    total: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.total != self.kept + sum(self.dropped.values()) or min(self.kept, *self.dropped.values(), 0) < 0:
            raise ValueError(f"{self.total} is not {self.kept} kept and {dict(self.dropped)} dropped")

    def __add__(self, other: "Account") -> "Account":
        dropped = Counter(self.dropped) + Counter(other.dropped)
        return Account(self.total + other.total, self.kept + other.kept, dropped)

    def encode(self, total: str) -> dict[str, Any]:
        """As JSON, with the name that `total` has: read or asked."""
        dropped = {reason: self.dropped[reason] for reason in sorted(self.dropped) if self.dropped[reason]}
        return {total: self.total, "kept": self.kept, "dropped": dropped}


@dataclass(frozen=True)
class Ledger:
    """The accounts of each batch, prompts and samples; asked = kept prompts × `num_generations`."""

    num_generations: int
    batches: Mapping[str, tuple[Account, Account]]

    def __post_init__(self) -> None:
        for name, (prompts, samples) in self.batches.items():
            asked = prompts.kept * self.num_generations
            if samples.total != asked:
                raise ValueError(f"batch {name}: {samples.total} samples, {asked} were asked for")

    @property
    def prompts(self) -> Account:
        """All batches' prompts."""
        return sum((prompts for prompts, _ in self.batches.values()), Account(0, 0))

    @property
    def samples(self) -> Account:
        """All batches' samples."""
        return sum((samples for _, samples in self.batches.values()), Account(0, 0))

    def encode(self) -> dict[str, Any]:
        """What ledger.json holds."""
        return {
            "schema": SCHEMA_VERSION,
            "num_generations": self.num_generations,
            "prompts": self.prompts.encode("read"),
            "samples": self.samples.encode("asked"),
            "batches": {
                name: {"prompts": prompts.encode("read"), "samples": samples.encode("asked")}
                for name, (prompts, samples) in self.batches.items()
            },
        }

    def summary(self) -> str:
        """One line for a person."""
        return f"prompts: {_line(self.prompts, 'read')}; samples: {_line(self.samples, 'asked')}"


def _line(account: Account, total: str) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(account.dropped.items()) if count)
    return f"{account.total:,} {total}, {account.kept:,} kept" + (f", dropped: {reasons}" if reasons else "")
