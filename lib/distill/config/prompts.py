"""`prompts`: datasets, and which of their rows the teacher is asked."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from distill.config.settings import Settings, regular_expression


class Source(Settings):
    """A dataset, read through `datasets`: a Hub id, a folder, or a JSONL, JSON or Parquet file."""

    source: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    messages: str | None = Field(None, description="column of message lists; found by name when left out")
    prompt: str | None = Field(None, description="column of prompts, strings or message lists")
    completion: str | None = Field(None, description="column of completions, strings or message lists")
    reference: str | None = Field(None, description="column of reference answers, for verifiers and evaluation")
    stream: bool = Field(False, description="read a Hub dataset as it comes, for one larger than the disk")

    @property
    def local(self) -> Path | None:
        """The file or folder that `source` names, or None when it is a Hub id."""
        path = Path(self.source).expanduser()
        looks_like_a_path = self.source.startswith(("/", "./", "../", "~")) or path.exists()
        return path if looks_like_a_path or path.suffix in (".jsonl", ".json", ".parquet") else None


class Mixed(Source):
    """One of several sources; `weight` is its share of the rows, for as long as it lasts."""

    weight: float = Field(1.0, gt=0)


class Filters(Settings):
    """What a prompt's last user turn must be like; what is left out is counted by reason."""

    min_characters: int | None = Field(None, gt=0)
    max_characters: int | None = Field(None, gt=0)
    min_tokens: int | None = Field(None, gt=0, description="of the whole prompt, as the teacher reads it")
    languages: list[str] | None = Field(None, min_length=1, description="codes such as en and de")
    match: str | None = Field(None, description="regular expression that must be found")
    reject: str | None = Field(None, description="regular expression that must not be found")

    @field_validator("match", "reject")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        return regular_expression(value)


class Prompts(Source):
    """Which rows become prompts, and in which batches. Either one `source`, or a `mix` of several."""

    source: str = ""
    mix: list[Mixed] = Field([])
    turns: Literal["last", "first", "each", "each_own"] = Field(
        "last", description="which user turns to answer; each_own: with the teacher's own answers as history"
    )
    system: str | None = Field(None, description="system message for prompts that have none")
    filters: Filters | None = None
    sample: float | None = Field(None, gt=0, le=1, description="share of the prompts to take, by hash")
    sample_seed: int = 0
    exclude: list[Source] = Field([], description="evaluation sets whose prompts must not occur")
    batch_size: int = Field(1024, gt=0)
    num_batches: int | Literal["all"] = "all"
    chat_template: Literal["tokenizer", "none"] = "tokenizer"
    overlong: Literal["drop", "fail"] = "drop"
    duplicates: Literal["drop", "keep", "normalized", "similar"] = "drop"
    similarity: float = Field(0.8, gt=0, le=1, description="share of word triples from which prompts are similar")
    shuffle_seed: int | None = Field(None, description="permute inside fixed blocks; None keeps the order")
    shuffle_block: int = Field(16, gt=0, description="batches in a block that is shuffled together")

    @field_validator("num_batches")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if value != "all" and int(value) < 1:
            raise ValueError("must be 1 or more, or `all`")
        return value

    @model_validator(mode="after")
    def _own_history(self) -> "Prompts":
        if self.turns != "each_own":
            return self
        if self.overlong == "fail":
            raise ValueError(
                "overlong: fail does not go with turns each_own, whose lengths nobody knows yet: take drop"
            )
        if self.filters and self.filters.min_tokens:
            raise ValueError(
                "filters.min_tokens does not go with turns each_own, whose lengths nobody knows: min_characters does"
            )
        if self.chat_template == "none":
            raise ValueError("chat_template: none writes no history, which turns each_own has: take tokenizer")
        return self

    @model_validator(mode="after")
    def _one_or_several(self) -> "Prompts":
        if self.source == "" and not self.mix:
            raise ValueError("source is missing: name a dataset, or several in mix")
        if self.mix and (surplus := sorted(self.model_fields_set & set(Source.model_fields))):
            raise ValueError(f"each source of mix has settings of its own: move {', '.join(surplus)} there")
        return self

    @property
    def sources(self) -> list[Source]:
        """All that is read, in the recipe's order."""
        return list(self.mix) or [self]

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return " + ".join(source.source for source in self.sources)
