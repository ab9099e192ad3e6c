"""`dataset`: which answers become training data."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from distill.config.settings import Settings, regular_expression, server_url


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
