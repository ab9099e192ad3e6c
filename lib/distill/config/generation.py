"""`generation`: what the teacher is asked for, and how it draws."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.settings import Settings, server_url


class Sampling(Settings):
    """How the next token is drawn. Order: temperature, then top-k, then top-p, then one draw."""

    strategy: Literal["greedy", "weighted", "topk", "nucleus", "composite"] = "weighted"
    temperature: float = Field(1.0, gt=0)
    top_k: int | None = Field(None, gt=0, lt=2**31)
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
