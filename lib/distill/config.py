"""The recipe: YAML becomes typed, frozen settings; every rule across fields is checked here.

A recipe stands alone: a field that it leaves out has the default given here, never another recipe's value.
"""

import difflib
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from distill.errors import DistillError
from distill.files import digest
from distill.seeds import with_seeds

Dtype = Literal["float32", "bfloat16", "float16"]
Objective = Literal["sft", "logits", "topk_logits", "on_policy", "aligned_logits"]
MADE_HERE = ("generated", "original")  # data that a recipe's own prompts give
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Settings(BaseModel):
    """Frozen, and strict about names: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Derive(Settings):
    """A student of another model's weights: some of its layers, heads and neurons, and its tokenizer."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    parent: str = Field(alias="from", description="the model whose weights they are")
    layers: int | tuple[int, ...] | None = Field(
        None, description="which, from 0 on, or how many evenly; all by default"
    )
    heads: int | None = Field(None, gt=0, description="query heads of a layer, those with the largest output")
    intermediate: int | None = Field(None, gt=0, description="neurons of a layer, those with the largest activation")
    prompts: int = Field(64, gt=0, description="of the recipe's, that heads and neurons are judged on")

    @property
    def narrows(self) -> bool:
        """Whether heads or neurons are left out, for which prompts are needed."""
        return self.heads is not None or self.intermediate is not None

    @property
    def in_words(self) -> str:
        """`8 layers, 6 heads of teacher`"""
        count = self.layers if isinstance(self.layers, int) else self.layers and len(self.layers)
        parts = {"layers": count, "heads": self.heads, "neurons": self.intermediate}
        return f"{', '.join(f'{n} {what}' for what, n in parts.items() if n) or 'a copy'} of {self.parent}"

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if layers == 0 or layers == ():
            raise ValueError("must be 1 or more, or a list of layers")
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise ValueError(f"{list(layers)} must rise: a layer is taken once, in its order")
        return layers


class Model(Settings):
    """A checkpoint: `source` is a Hub id, a Hugging Face folder, or an Orbax params folder of another run.

    With `derive` it is made of another model of the recipe, and has no source of its own.
    """

    source: str
    derive: Derive | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    tokenizer: str | None = Field(None, description="Hub id or folder, where the tokenizer lives elsewhere")
    tokenizer_revision: str | None = None
    chat_template: str | None = Field(None, description="Jinja text, or a file of it, in place of the tokenizer's own")

    @model_validator(mode="before")
    @classmethod
    def _one_origin(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("derive"):
            return values
        words = Derive.model_validate(values["derive"]).in_words
        others = ("source", "revision", "tokenizer", "tokenizer_revision", "chat_template")
        if odd := [name for name in others if values.get(name) not in (None, words)]:
            raise ValueError(f"a model with derive has no {odd[0]}: all it is comes from the other one")
        return values | {"source": words}

    @property
    def local(self) -> Path | None:
        """The folder that `source` names, or None when it is a Hub id, or made of another model."""
        if self.derive is not None:
            return None
        path = Path(self.source).expanduser()
        looks_like_a_path = self.source.startswith(("/", "./", "../", "~")) or path.is_dir()
        return path if looks_like_a_path else None

    @property
    def id8(self) -> str:
        """Eight hex digits of what determines the imported checkpoint."""
        return digest(self.decides)[:8]

    @property
    def decides(self) -> dict[str, Any]:
        """The settings; one that came later and is left out changes no name."""
        left_out = {name for name in ("derive", "chat_template") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=left_out)


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
    mix: list[Mixed] = []
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


class Sampling(Settings):
    """How the next token is drawn. Order: temperature, then top-k, then top-p, then one draw."""

    strategy: Literal["greedy", "weighted", "topk", "nucleus", "composite"] = "weighted"
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Sampling":
        needs = {"topk": {"top_k"}, "nucleus": {"top_p"}, "composite": {"top_k", "top_p"}}
        wanted = needs.get(self.strategy, set())
        given = {name for name in ("top_k", "top_p") if getattr(self, name) is not None}
        if missing := wanted - given:
            raise ValueError(f"strategy {self.strategy} needs {' and '.join(sorted(missing))}")
        if surplus := given - wanted:
            raise ValueError(
                f"strategy {self.strategy} does not use {' and '.join(sorted(surplus))}: "
                "remove it, or take strategy composite (top_k and top_p), topk or nucleus"
            )
        if self.strategy == "greedy" and "temperature" in self.model_fields_set:
            raise ValueError("strategy greedy does not use temperature: remove it")
        return self


class EngineMesh(Settings):
    """Devices that generate together: rows of the batch, experts, and heads with hidden widths are spread over them."""

    data: int = Field(1, gt=0)
    expert: int = Field(1, gt=0)
    tensor: int = Field(1, gt=0)


ONE_DEVICE = EngineMesh()


class Generation(Settings):
    """What the teacher is asked for."""

    max_prefill_length: int = Field(256, gt=0)
    max_target_length: int = Field(2048, gt=0, description="prompt and completion together")
    num_generations: int = Field(1, gt=0)
    sampling: Sampling = Sampling()
    seed: int = 0
    slots: int = Field(64, gt=0, description="sequences decoded together; fixes the bytes with the machine")
    mesh: EngineMesh = ONE_DEVICE
    int8: tuple[Literal["weights", "cache"], ...] = Field((), description="what is kept in eight bits")
    top_logits: int | None = Field(None, gt=0, description="store so many of the likeliest ids with each token")
    sampled_logits: int | None = Field(None, gt=0, description="store so many draws from the teacher's distribution")
    endpoint: str | None = Field(None, description="URL of a server that is there already; ours is started by default")
    max_failed_rows: int = Field(0, ge=0, description="prompts of a batch that may stay without an answer")
    idle_seconds: int = Field(60, gt=0, description="the server that batches share leaves after so long unasked")

    @field_validator("endpoint")
    @classmethod
    def _url(cls, endpoint: str | None) -> str | None:
        return None if endpoint is None else server_url(endpoint, "DISTILL_API_KEY")

    @property
    def decides(self) -> dict[str, Any]:
        """The settings that decide what is answered; who answers and how failures are taken does not."""
        untold = {f"{kind}_logits" for kind, k in self.told.items() if not k}
        how = {"seed", "endpoint", "max_failed_rows", "idle_seconds"}
        return self.model_dump(mode="json", exclude=how | untold)

    @property
    def told(self) -> dict[str, int]:
        """Logits of each kind that are stored with a token."""
        return {"top": self.top_logits or 0, "sampled": self.sampled_logits or 0}

    @model_validator(mode="after")
    def _lengths(self) -> "Generation":
        if self.max_prefill_length >= self.max_target_length:
            raise ValueError(
                f"max_prefill_length ({self.max_prefill_length}) must be smaller than "
                f"max_target_length ({self.max_target_length}), which counts prompt and completion"
            )
        if self.sampling.strategy == "greedy" and self.num_generations > 1:
            raise ValueError(f"strategy greedy gives {self.num_generations} equal samples: num_generations must be 1")
        return self


class Verifier(Settings):
    """Keeps a completion only when it is right, judged by `prompts.reference`.

    exact_match: the same text; numeric: the same last number; code: its Python passes the reference's assertions;
    reasoning_gym: the scorer of the task that the reference is an entry of.
    """

    name: Literal["exact_match", "numeric", "code", "reasoning_gym"] = "exact_match"
    seconds: float = Field(5.0, gt=0, description="that code, or a scorer, may take")
    megabytes: int = Field(512, gt=0, description="of memory that code may have")
    task: str | None = Field(None, description="of reasoning_gym; the entry's own when left out")
    min_score: float = Field(1.0, gt=0, le=1, description="of reasoning_gym, where 1 is right")
    python: str | None = Field(None, description="interpreter that has reasoning_gym; this one when left out")


class Quality(Settings):
    """What a completion must be like; what is left out is counted by reason."""

    min_characters: int | None = Field(None, gt=0)
    max_characters: int | None = Field(None, gt=0)
    match: str | None = Field(None, description="regular expression that must be found")
    reject: str | None = Field(None, description="regular expression that must not be found")
    languages: list[str] | None = Field(None, min_length=1, description="codes such as en and de")
    refusal: bool = Field(False, description="drop what opens like a refusal, in English")
    repetition: float | None = Field(None, ge=0, lt=1, description="largest share of repeated runs of four words")
    min_logprob: float | None = Field(None, le=0, description="least mean log-probability of its tokens, in nats")

    @field_validator("match", "reject")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        return regular_expression(value)


class Best(Settings):
    """Of the samples of a prompt that all filters let through, the best are kept."""

    keep: int = Field(1, gt=0)
    by: Literal["logprob", "shortest", "first", "judge"] = "logprob"


class Judge(Settings):
    """A model at an OpenAI-compatible endpoint that scores answers. Its key is DISTILL_JUDGE_API_KEY."""

    endpoint: str = Field(description="URL of the server")
    model: str = Field(description="what the server calls it")
    prompt: str = Field(description="Jinja text with messages, completion and reference, which asks for a score")
    score: str = Field(r"Score: *(\d+(?:\.\d+)?)", description="expression that the last line is, the score its group")
    bounds: tuple[float, float] = Field((1.0, 10.0), description="the lowest and the highest score")
    min_score: float | None = Field(None, description="answers below it are left out")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, gt=0, description="of a judgement")
    attempts: int = Field(3, gt=0, description="judgements that may lack a score before the answer is left out")
    concurrency: int = Field(16, gt=0, description="requests in flight")

    @field_validator("endpoint")
    @classmethod
    def _url(cls, endpoint: str) -> str:
        return server_url(endpoint, "DISTILL_JUDGE_API_KEY")

    @field_validator("prompt")
    @classmethod
    def _has_the_answer(cls, prompt: str) -> str:
        from jinja2 import Environment, TemplateSyntaxError, meta  # only who has a judge waits for it

        try:
            names = meta.find_undeclared_variables(Environment().parse(prompt))
        except TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno} is no Jinja: {error.message}") from None
        if odd := sorted(names - {"messages", "completion", "reference"}):
            raise ValueError(f"{odd[0]} is unknown: there is messages, completion and reference")
        if "completion" not in names:
            raise ValueError("it never writes the completion, of which the judge is asked")
        return prompt

    @model_validator(mode="after")
    def _one_number(self) -> "Judge":
        if re.compile(regular_expression(self.score)).groups != 1:
            raise ValueError(f"score: {self.score!r} must have one group, the number")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"bounds: {self.bounds[0]:g} is not below {self.bounds[1]:g}")
        return self


class Dataset(Settings):
    """Which samples become training data."""

    completions: Literal["generated", "own"] = Field("generated", description="own: those the prompts came with")
    think: Literal["keep", "drop"] = Field("keep", description="what a completion has before `</think>`")
    keep_length: bool = Field(False, description="keep samples that ran into max_target_length")
    keep_duplicates: bool = False
    quality: Quality | None = None
    verifier: Verifier | None = None
    judge: Judge | None = None
    best: Best | None = None
    held_out: float | None = Field(None, gt=0, lt=1, description="share of the prompts that becomes the split test")
    held_out_seed: int = 0
    provenance: bool = Field(False, description="columns that tell where each row comes from")
    jsonl: bool = Field(False, description="the same rows as JSON lines too")
    shard_rows: int = Field(100_000, gt=0)
    license: str | None = Field(None, description="written on the card; unknown when left out")

    @model_validator(mode="after")
    def _judged_for_something(self) -> "Dataset":
        by_judge = self.best is not None and self.best.by == "judge"
        if by_judge and self.judge is None:
            raise ValueError("best.by: judge needs `judge`: its endpoint, model and prompt")
        if self.judge and not by_judge and self.judge.min_score is None:
            raise ValueError("judge: nothing depends on it: set best.by to judge, or judge.min_score")
        return self


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


Number = float | Schedule
SOFT = ("teacher", "alpha", "temperature")
LOGITS = (*SOFT, "teacher_dtype", "divergence", "beta", "skew", "hidden_states")
SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "sft": (),
    "logits": LOGITS,
    "topk_logits": ("alpha", "k", "estimator"),
    "on_policy": (*LOGITS, "on_policy"),
    "aligned_logits": LOGITS[:-1],
}
"""Settings of a stage that its objective alone decides the use of."""
NUMBERS: dict[str, tuple[str, ...]] = {
    "sft": (),
    **dict.fromkeys(("logits", "on_policy", "aligned_logits"), ("alpha", "temperature", "beta")),
    "topk_logits": ("alpha",),
}
"""Those among them that are a number or its way over the steps."""


class Stage(Settings):
    """One training run. `init` is a model or an earlier stage."""

    init: str
    data: tuple[Part, ...] = Field((Part(source="generated"),), min_length=1)
    thoughts: Literal["learn", "context"] = Field(
        "learn", description="what an answer has before `</think>`: learned, or read alone"
    )
    loss_on: Literal["completion", "assistant"] = Field(
        "completion", description="the last turn, or an assistant's all"
    )
    overlong: Literal["drop", "cut"] = Field("drop", description="what happens to examples over max_length")
    objective: Objective = "sft"
    teacher: str | None = Field(None, description="the model that is asked for its logits; the recipe's by default")
    teacher_dtype: Literal["float32", "bfloat16", "int8"] | None = Field(
        None, description="what its weights are held in; as they are stored when left out"
    )
    divergence: Literal[
        "forward_kl", "reverse_kl", "jsd", "skew_forward", "skew_reverse", "total_variation"
    ] = "forward_kl"  # fmt: skip
    alpha: Number = Field(1.0, description="share of the divergence in the loss, the rest is NLL")
    temperature: Number = Field(1.0, description="that the scores of both are divided by in the divergence")
    beta: Number = Field(0.5, description="share of the teacher in what jsd compares both with")
    k: int = Field(32, gt=0, description="stored logits of a token that are used")
    estimator: Literal["topk", "sampled"] = Field(
        "topk", description="the likeliest ids and a bucket for the rest, or draws from the teacher's distribution"
    )
    skew: float = Field(0.1, gt=0, lt=1, description="share of the own side in what skew_* compares with")
    hidden_states: HiddenStates | None = None
    on_policy: OnPolicy = OnPolicy()
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(8, gt=0, description="rows of a step, on all devices together")
    micro_batch_size: int | None = Field(None, gt=0, description="rows computed at a time; all when left out")
    packing: bool = Field(False, description="several examples share a row of max_length tokens")
    max_length: int | None = Field(None, gt=1, description="tokens of an example; generation's by default")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="computed in; learned weights are float32")
    remat: Literal["none", "dots", "full"] = Field("full", description="what the backward pass computes again")
    optimizer: Literal["adamw", "adafactor", "lion"] = "adamw"
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    final_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    z_loss: float = Field(0.0, ge=0, description="weight of log² Z beside the NLL")
    balance_loss: float = Field(0.0, ge=0, description="weight of how unevenly experts are asked")
    lora: Lora | None = None
    mesh: MeshShape = MeshShape()
    seed: int = 0
    seeds: tuple[int, ...] | None = Field(None, min_length=1, description="a stage for each: {name}-seed{seed}")
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(2, gt=0, description="newest checkpoints that are there at a time, beside the best")
    log_every: int = Field(10, gt=0)
    tensorboard: bool = Field(False, description="also write the metrics for TensorBoard; needs tensorboardX")
    held_out: Annotated[int, Field(ge=0)] | Literal["evaluation"] = Field(
        0, description="examples that are kept apart to be asked for their loss; evaluation: the recipe's, for NLL"
    )
    held_out_every: int = Field(500, gt=0, description="also asked whenever a checkpoint is saved")
    select: Literal["last", "best"] = Field("last", description="which step is the result; best by held-out loss")
    spike: float | None = Field(None, gt=1, description="a loss so many times the usual one ends the run")

    @field_validator("data", mode="before")
    @classmethod
    def _one_or_more(cls, data: Any) -> Any:
        if isinstance(data, str):
            if data not in MADE_HERE:
                raise ValueError(
                    f"{data!r} is neither generated nor original{did_you_mean(data, MADE_HERE)}: "
                    "a dataset goes into a list, `- source: ...`"
                )
            return ({"source": data},)
        return (data,) if isinstance(data, dict) else data

    @field_validator("data")
    @classmethod
    def _all_weights_or_none(cls, data: tuple[Part, ...]) -> tuple[Part, ...]:
        if 0 < sum(part.weight is not None for part in data) < len(data):
            without = next(part.source for part in data if part.weight is None)
            raise ValueError(f"{without} has no weight and others have: give all of them one, or none")
        return data

    @property
    def objective_in_words(self) -> str:
        """`sft`, or an objective with what it goes by: `logits: jsd, alpha 1 to 0.5, temperature 2`."""
        if not self.asks_teacher:
            return self.objective
        numbers = [f"{name} {Schedule.of(getattr(self, name))}" for name in ("alpha", "temperature")]
        return f"{self.objective}: {', '.join([self.divergence, *numbers])}"

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher is in memory while it trains."""
        return "teacher_dtype" in SETTINGS_OF[self.objective]

    @property
    def kind(self) -> str:
        """The kind of stored logits that it reads."""
        return "top" if self.estimator == "topk" else "sampled"

    @property
    def data_in_words(self) -> str:
        """`generated`, or its sources with their weights."""
        return " + ".join(part.in_words for part in self.data)

    @model_validator(mode="after")
    def _length_of_run(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        return self

    @field_validator("alpha", "temperature", "beta")
    @classmethod
    def _in_range(cls, value: Number, info: ValidationInfo) -> Number:
        least, most = sorted((Schedule.of(value).start, Schedule.of(value).end))
        if info.field_name == "temperature" and least <= 0:
            raise ValueError(f"{least:g} must be above 0: scores are divided by it")
        if info.field_name == "alpha" and not 0 <= least <= most <= 1:
            raise ValueError(f"{least if least < 0 else most:g} must be between 0 (NLL alone) and 1 (none of it)")
        if info.field_name == "beta" and not 0 < least <= most < 1:
            raise ValueError("must be between 0 and 1; at its ends jsd is zero: take forward_kl or reverse_kl")
        return value

    @model_validator(mode="after")
    def _objective_uses_what_is_given(self) -> "Stage":
        plain, used = type(self).model_fields, SETTINGS_OF[self.objective]
        known = dict.fromkeys(name for names in SETTINGS_OF.values() for name in names)
        given = [name for name in known if getattr(self, name) != plain[name].default]
        if odd := [name for name in given if name not in used]:
            raise ValueError(f"objective {self.objective} does not use {' and '.join(odd)}: remove it")
        for name, users in (("beta", ("jsd",)), ("skew", ("skew_forward", "skew_reverse"))):
            if name in given and self.divergence not in users:
                raise ValueError(
                    f"divergence {self.divergence} does not use {name}, {' and '.join(users)} does: remove it"
                )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Stage":
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        plain = type(self).model_fields
        unused = {"adafactor": ("beta1", "beta2")}.get(self.optimizer, ())
        if odd := [name for name in unused if getattr(self, name) != plain[name].default]:
            raise ValueError(f"optimizer {self.optimizer} does not use {' and '.join(odd)}: remove it")
        if self.objective == "on_policy" and self.packing:
            raise ValueError("objective on_policy: packing cannot know how long an answer will be: leave it out")
        if self.objective == "aligned_logits" and self.packing:
            raise ValueError("objective aligned_logits: a row is two texts of different lengths: leave packing out")
        if self.objective == "aligned_logits" and self.loss_on != "completion":
            raise ValueError("objective aligned_logits aligns the last turn: loss_on must be completion")
        if self.select == "best" and not self.held_out:
            raise ValueError("select: best needs held_out, the number of examples to judge by")
        return self


class Evaluation(Source):
    """Held-out prompts with reference answers."""

    limit: int | None = Field(None, gt=0, description="use the first rows only")
    batch_size: int = Field(64, gt=0)
    max_target_length: int | None = Field(None, gt=0, description="generation's by default")


class Comparison(Settings):
    """Stages with seeds as the arms of an experiment: `evidence` sets them side by side."""

    baseline: str = Field(description="the arm that learns without the teacher")


class Report(Settings):
    title: str | None = None
    samples: int = Field(12, ge=0, description="held-out prompts shown side by side")


class Plan(Settings):
    """The machine that `plan` counts for, and what it takes for granted of the data. No result depends on it."""

    device: str | None = Field(None, description="its kind, such as H100 or TPU v4: peak, memory and bandwidth")
    devices: int = Field(1, gt=0)
    peak_tflops: float | None = Field(None, gt=0, description="of one device in dense bfloat16, where not its kind's")
    memory_gib: float | None = Field(None, gt=0, description="of one device")
    bandwidth_gbs: float | None = Field(None, gt=0, description="GB/s between one device and its memory")
    mfu: float = Field(0.4, gt=0, le=1, description="share of the peak that training and reading prompts reach")
    bandwidth_use: float = Field(0.5, gt=0, le=1, description="share of the bandwidth that decoding reaches")
    prompt_tokens: int | None = Field(None, gt=0, description="mean; the longest when left out")
    completion_tokens: int | None = Field(None, gt=0, description="mean; the longest when left out")
    original_tokens: int | None = Field(None, gt=0, description="mean of an example that is not generated")
    rows: dict[str, int] = Field({}, description="of published datasets in stages, which a plan does not download")
    compile: bool = Field(True, description="ask the compiler; without it memory is the closed form alone")


class Target(Settings):
    """A place to publish to: `hf://owner/name`, `gs://bucket/folder` or `s3://bucket/folder`."""

    to: str
    what: str = Field("dataset", description="dataset, or the name of a stage: its exported student")
    private: bool = Field(True, description="on the Hub: seen by its owner only")
    branch: str = Field("main", description="on the Hub")
    license: str | None = Field(None, description="of a student, written on its card; unknown when left out")

    @field_validator("to")
    @classmethod
    def _place(cls, to: str) -> str:
        parts = urlsplit(to)
        if parts.scheme not in ("hf", "gs", "s3"):
            raise ValueError(f"{to!r} is no place: hf://owner/name, gs://bucket/folder or s3://bucket/folder")
        if parts.username or parts.password or parts.query:
            raise ValueError("credentials go into the environment or the client's own login, not into a recipe")
        if parts.scheme == "hf" and not re.fullmatch(r"[\w.-]+/[\w.-]+", f"{parts.netloc}{parts.path}"):
            raise ValueError(f"{to!r} is no repository: hf://owner/name (`what` decides whether a dataset or a model)")
        if not parts.netloc:
            raise ValueError(f"{to!r} names no bucket: {parts.scheme}://bucket/folder")
        return to.rstrip("/")


class Publish(Settings):
    """Where results go. `asked`: when `publish` is asked for by name; `all`: with everything else."""

    when: Literal["asked", "all"] = "asked"
    targets: dict[str, Target] = {}
    remove_local: bool = Field(False, description="delete the completions once their dataset is published")

    @model_validator(mode="after")
    def _somewhere(self) -> "Publish":
        if self.remove_local and "dataset" not in {target.what for target in self.targets.values()}:
            raise ValueError("remove_local: no target has the dataset, so that nothing would be left of it")
        if "removed" in self.targets:
            raise ValueError("targets.removed: take another name, published/removed.json tells of completions")
        return self


class Needs(Settings):
    """What a cluster gives to a job; on one machine a job takes what there is."""

    accelerators: int = Field(0, ge=0, description="on each of its nodes")
    kind: str = Field("gpu", pattern=r"^[A-Za-z0-9_]+(:[A-Za-z0-9_.]+)?$", description="gpu, or gpu:h100 on SLURM")
    manufacturer: Literal["nvidia", "amd"] = Field("nvidia", description="of the accelerators, for Kubernetes")
    memory_gb: int = Field(4, gt=0, description="of main memory, on each of its nodes")
    minutes: int = Field(60, gt=0, description="of the first attempt; the second has twice as many, and so on")
    cpus: int = Field(1, gt=0)


class TrainingNeeds(Needs):
    """`tasks` processes train as one; where there are several nodes they are spread over them."""

    tasks: int = Field(1, gt=0, description="processes, each with its share of the devices")
    nodes: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _a_task_for_each_node(self) -> "TrainingNeeds":
        if self.tasks % self.nodes:
            raise ValueError(f"tasks ({self.tasks}) must be a multiple of nodes ({self.nodes})")
        return self


class Resources(Settings):
    """What jobs ask of a cluster, by what they do."""

    generate: Needs = Field(Needs(minutes=240), description="a batch; a group's batches share the accelerators")
    train: TrainingNeeds = TrainingNeeds(minutes=720)
    evaluate: Needs = Needs()
    other: Needs = Needs()


class Storage(Settings):
    """What outlives the machine that a job runs on. No result depends on it."""

    work: str | None = Field(None, description="a folder, gs:// or s3://: steps/ and journals are kept there as well")

    @field_validator("work")
    @classmethod
    def _place(cls, work: str | None) -> str | None:
        if work is None or "://" not in work:
            return work and (work.rstrip("/") or None)
        parts = urlsplit(work)
        if parts.scheme not in ("gs", "s3") or not parts.netloc:
            raise ValueError(f"{work!r} is no place: a folder, gs://bucket/folder or s3://bucket/folder")
        if parts.username or parts.password or parts.query:
            raise ValueError("credentials go into the environment or the client's own login, not into a recipe")
        return work.rstrip("/")


class Recipe(Settings):
    """A whole recipe."""

    run: str
    results: Path = Path("results")
    code: Literal["tracked", "pinned"] = "tracked"
    models: dict[str, Model]
    teacher: str | None = Field("teacher", description="none where models has no `teacher` and none is named")
    student: str = "student"
    prompts: Prompts | None = None
    generation: Generation = Generation()
    dataset: Dataset = Dataset()
    stages: dict[str, Stage]
    evaluation: Evaluation | None = None
    report: Report = Report()
    comparison: Comparison | None = None
    plan: Plan = Plan()
    publish: Publish = Publish()
    resources: Resources = Resources()
    storage: Storage = Storage()

    @field_validator("stages", mode="before")
    @classmethod
    def _a_stage_for_each_seed(cls, stages: Any) -> Any:
        return with_seeds(stages) if isinstance(stages, dict) else stages

    @model_validator(mode="before")
    @classmethod
    def _maybe_no_teacher(cls, values: Any) -> Any:
        if isinstance(values, dict) and "teacher" not in values and "teacher" not in (values.get("models") or ()):
            return values | {"teacher": None}
        return values

    @field_validator("run")
    @classmethod
    def _run_is_a_name(cls, run: str) -> str:
        if not re.match(NAME, run):
            raise ValueError(f"{run!r} must be a plain name (letters, digits, `.`, `_`, `-`), not a path")
        if run == "models":
            raise ValueError("`models` is the folder that all runs share: take another name")
        return run

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for kind, names in (("model", self.models), ("stage", self.stages), ("publish target", self.publish.targets)):
            for name in names:
                if not re.match(NAME, name):
                    raise ValueError(f"{kind} {name!r}: a name has letters, digits, `.`, `_` and `-` only")
        for role in ("teacher", "student"):
            if (name := getattr(self, role)) is not None and name not in self.models:
                raise ValueError(f"{role}: {name} is not among models{did_you_mean(name, self.models)}")
        if both := set(self.models) & set(self.stages):
            raise ValueError(f"{', '.join(sorted(both))}: both a model and a stage, rename one")
        known = [*self.models, *self.stages]
        for name, stage in self.stages.items():
            if stage.init not in known:
                raise ValueError(
                    f"stages.{name}.init: {stage.init} is neither a model nor a stage{did_you_mean(stage.init, known)}"
                )
            if stage.teacher is not None and stage.teacher not in self.models:
                close = did_you_mean(stage.teacher, self.models)
                raise ValueError(f"stages.{name}.teacher: {stage.teacher} is not among models{close}")
        for name in self.stages:
            self.lineage(name)
        if self.dataset.completions == "own" and self.generation.num_generations > 1:
            raise ValueError(
                "dataset.completions: own has one completion a prompt: generation.num_generations must be 1"
            )
        if self.dataset.completions == "own" and self.prompts.turns == "each_own":
            raise ValueError("dataset.completions: own has nobody to write a history: prompts.turns must be each")
        whats = ["dataset", *self.stages]
        for name, target in self.publish.targets.items():
            if target.what not in whats:
                raise ValueError(
                    f"publish.targets.{name}.what: {target.what} is neither the dataset nor a stage"
                    f"{did_you_mean(target.what, whats)}"
                )
        sources = self.prompts.sources if self.prompts else []
        unknown = all(source.reference is None and source.completion is None for source in sources)
        if self.prompts and self.dataset.verifier and unknown:
            raise ValueError("dataset.verifier needs prompts.reference, the column of right answers")
        return self

    @model_validator(mode="after")
    def _nothing_of_a_teacher_that_is_not_there(self) -> "Recipe":
        if self.teacher is not None:
            return self
        remedy = "name one among models, in `teacher`"
        if self.prompts and self.dataset.completions == "generated":
            close = did_you_mean("teacher", self.models)
            raise ValueError(
                f"teacher is not among models{close}, and prompts are there to be answered: {remedy}, or take the "
                "answers they came with (dataset.completions: own), or leave prompts out and name published data in "
                "stages"
            )
        for name, stage in self.stages.items():
            if stage.objective == "topk_logits" or (stage.asks_teacher and stage.teacher is None):
                raise ValueError(f"stages.{name}: objective {stage.objective} needs a teacher's logits: {remedy}")
        if self.comparison is not None:
            raise ValueError(f"comparison measures how far arms go towards the teacher, and there is none: {remedy}")
        return self

    @model_validator(mode="after")
    def _nothing_of_prompts_that_are_not_there(self) -> "Recipe":
        if self.prompts is not None:
            return self
        for name, stage in self.stages.items():
            if made := next((part.source for part in stage.data if not part.published), None):
                raise ValueError(
                    f"stages.{name}.data: {made} comes of the recipe's prompts, and it has none: add prompts, or name "
                    "a published set (`- source: ...`)"
                )
        for name, model in self.models.items():
            if model.derive and model.derive.narrows:
                raise ValueError(f"models.{name}.derive: heads and neurons are judged on prompts, and there are none")
        for name, target in self.publish.targets.items():
            if target.what == "dataset":
                raise ValueError(
                    f"publish.targets.{name}.what: without prompts the recipe makes no dataset: name a stage"
                )
        if odd := sorted(self.dataset.model_fields_set):
            raise ValueError(f"dataset.{odd[0]}: without prompts the recipe makes no dataset: remove it")
        return self

    @model_validator(mode="after")
    def _logits_belong_to_their_tokens(self) -> "Recipe":
        for name, stage in self.stages.items():
            if stage.objective != "topk_logits":
                continue
            if stage.loss_on != "completion":
                raise ValueError(f"stages.{name}.loss_on: logits are stored for the last turn, take completion")
            if stage.thoughts != "learn":
                raise ValueError(f"stages.{name}.thoughts: stored logits are of every token of an answer, take learn")
            if any(part.rows for part in stage.data):
                raise ValueError(
                    f"stages.{name}.data: rows counts conversations, stored logits have samples: leave it out"
                )
            if self.dataset.think == "drop" and "generated" in {part.source for part in stage.data}:
                raise ValueError(
                    f"dataset.think: drop changes the answers that stages.{name} has logits of: keep, or take sft"
                )
        return self

    def id8(self, model: str) -> str:
        """Eight hex digits of what determines a model's params folder."""
        settings = self.models[model]
        if settings.derive is None:
            return settings.id8
        made_of = [settings.decides, self.id8(settings.derive.parent)]
        return digest([*made_of, self.prompts.model_dump(mode="json")] if settings.derive.narrows else made_of)[:8]

    @model_validator(mode="after")
    def _derived_from_what_is_there(self) -> "Recipe":
        for name in self.models:
            seen, at = [name], self.models[name].derive
            while at is not None:
                if at.parent not in self.models:
                    close = did_you_mean(at.parent, self.models)
                    raise ValueError(f"models.{name}.derive.from: {at.parent} is not among models{close}")
                if at.parent in seen:
                    raise ValueError(f"models.{name}.derive: {' → '.join([*seen, at.parent])} is a cycle")
                seen, at = [*seen, at.parent], self.models[at.parent].derive
        return self

    def captured(self, stage: str) -> bool:
        """Whether the logits that a stage reads of generated answers are stored as these are generated."""
        settings = self.stages[stage]
        told = self.generation.told[settings.kind] if self.dataset.completions == "generated" else 0
        return told >= settings.k

    @property
    def scored_logits(self) -> dict[str, int]:
        """Logits of each kind that a token of text is scored for, where stages need what was not captured."""
        widths = {"top": 0, "sampled": 0}
        for name, stage in self.stages.items():
            captured = self.captured(name) and all(part.source == "generated" for part in stage.data)
            if stage.objective == "topk_logits" and not captured:
                widths[stage.kind] = max(widths[stage.kind], stage.k)
        return widths

    @property
    def reader(self) -> str:
        """The model whose tokenizer reads the prompts: the teacher, or the student where there is none."""
        return self.teacher or self.student

    @property
    def chat_template(self) -> Literal["tokenizer", "none"]:
        """How conversations become text."""
        return self.prompts.chat_template if self.prompts else "tokenizer"

    def teacher_of(self, stage: str) -> str | None:
        """The model whose logits a stage asks for while it trains, or None where it asks for none."""
        settings = self.stages[stage]
        return settings.teacher or self.teacher if settings.asks_teacher else None

    @property
    def arms(self) -> dict[str, dict[int, str]]:
        """{arm: {seed: stage}}, where `{arm}-seed{seed}` are the runs of one stage."""
        arms: dict[str, dict[int, str]] = {}
        for name, stage in self.stages.items():
            arms.setdefault(name.removesuffix(f"-seed{stage.seed}"), {})[stage.seed] = name
        return arms

    @model_validator(mode="after")
    def _comparable(self) -> "Recipe":
        for name, stage in self.stages.items():
            if stage.held_out == "evaluation" and self.evaluation is None:
                raise ValueError(f"stages.{name}.held_out: the recipe has no evaluation: add one, or give a number")
        if self.comparison is None:
            return self
        if (baseline := self.comparison.baseline) not in self.arms:
            raise ValueError(f"comparison.baseline: {baseline} is not a stage{did_you_mean(baseline, self.arms)}")
        if apart := [name for name, stage in self.stages.items() if stage.held_out != "evaluation"]:
            raise ValueError(f"stages.{apart[0]}.held_out must be `evaluation`: arms are compared on the same text")
        return self

    def lineage(self, stage: str) -> list[str]:
        """`stage` and the stages it builds on, newest first; a cycle is a ValueError."""
        seen = []
        while stage in self.stages:
            if stage in seen:
                raise ValueError(f"stages form a cycle: {' → '.join([*seen[seen.index(stage) :], stage])}")
            seen.append(stage)
            stage = self.stages[stage].init
        return seen

    @cached_property
    def folder(self) -> Path:
        """`{results}/{run}`"""
        return self.results / self.run


def server_url(endpoint: str, key: str) -> str:
    """The address of a server whose key is in the variable `key`, without `/v1`; or a ValueError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{endpoint!r} is no URL: http://host:port")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"the key goes into {key}, not into the URL: a recipe is for others to read")
    return endpoint.rstrip("/").removesuffix("/v1")


def regular_expression(value: str | None) -> str | None:
    """`value`, which is one, or a ValueError."""
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return value


def did_you_mean(name: str, known: Any) -> str:
    """` (did you mean x?)`, or the list of what there is."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (there is {', '.join(known)})" if known else ""


def load_recipe(values: dict[str, Any]) -> Recipe:
    """Check a recipe that YAML gave as a dictionary; all that is wrong is in one `DistillError`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise DistillError("; ".join(_explain(fault) for fault in error.errors())) from None


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistillError(f"recipe {path} does not exist") from None
    except yaml.YAMLError as error:
        raise DistillError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DistillError(f"recipe {path} is not a mapping: see config.yaml for the shape")
    return load_recipe(values)


def _explain(fault: dict[str, Any]) -> str:
    """One pydantic fault in the house's form: path, value, remedy."""
    path = [str(part) for part in fault["loc"]]
    where = ".".join(path) or "recipe"
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a setting{did_you_mean(path[-1], _fields_at(path[:-1]))}"
    if fault["type"] == "missing":
        return f"{where} is missing: the recipe must give it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message if where == "recipe" else f"{where}: {message}"
    return f"{where} is {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _fields_at(path: list[str]) -> list[str]:
    """Names of the settings below a path, for the nearest known one."""
    kind: Any = Recipe
    for part in path:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or part not in kind.model_fields:
            continue  # a name of the user's own in models or stages
        kind = _settings_in(kind.model_fields[part].annotation) or kind
    return list(kind.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _settings_in(part):
            return found
    return None
