"""`resources`, `storage`: what jobs ask of a cluster, and what outlives its machines."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from distill.config.settings import Settings


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
