"""`evaluation`, `comparison`, `report`, `plan`, `publish`: what is made of the stages, and where it goes."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from distill.config.prompts import Source
from distill.config.settings import Settings


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
    targets: dict[str, Target] = Field({})
    remove_local: bool = Field(False, description="delete the completions once their dataset is published")

    @model_validator(mode="after")
    def _somewhere(self) -> "Publish":
        if self.remove_local and "dataset" not in {target.what for target in self.targets.values()}:
            raise ValueError("remove_local: no target has the dataset, so that nothing would be left of it")
        if "removed" in self.targets:
            raise ValueError("targets.removed: take another name, published/removed.json tells of completions")
        return self
