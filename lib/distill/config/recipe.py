"""The recipe as a whole, and every rule across its sections."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.dataset import Dataset
from distill.config.generation import Generation
from distill.config.models import Model
from distill.config.prompts import Prompts
from distill.config.resources import Resources, Storage
from distill.config.results import Comparison, Evaluation, Plan, Publish, Report
from distill.config.settings import NAME, Settings, did_you_mean
from distill.config.stages import Stage
from distill.files import digest
from distill.seeds import with_seeds


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
            several = self.prompts and self.prompts.duplicates == "keep" and self.dataset.completions == "own"
            if several and not all(part.published for part in stage.data):
                raise ValueError(
                    f"prompts.duplicates: keep leaves several answers to a prompt, stages.{name} has logits of one: "
                    "drop, or take sft"
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
