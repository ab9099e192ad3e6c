"""`stages`: training runs."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distill.config.settings import Settings, did_you_mean
from distill.config.training import MADE_HERE, HiddenStates, Lora, MeshShape, Number, OnPolicy, Part, Schedule

Objective = Literal["sft", "logits", "topk_logits", "on_policy", "aligned_logits"]
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
