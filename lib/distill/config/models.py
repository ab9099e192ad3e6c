"""`models`: checkpoints, and students made of them."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from distill.config.settings import Settings
from distill.files import digest

Dtype = Literal["float32", "bfloat16", "float16"]


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
