"""`model.json` of a params folder: what the model is, read without JAX."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from distill import SCHEMA_VERSION
from distill.errors import DistillError
from distill.files import read_json, write_json
from distill.models.config import ModelConfig


class ModelInfo(BaseModel):
    """`model.json`. `digest` is over every tensor's name, type, shape and bytes, in order of name.

    plain_tokenizer: its `tokenizer.json` alone has all its rules, chat templates apart.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    source: str
    revision: str | None = None
    dtype: str
    architecture: ModelConfig
    hf_config: dict[str, Any]
    parameters: int
    vocab_size: int
    real_vocab: int
    eos_ids: list[int]
    tokenizer_hash: str
    plain_tokenizer: bool = False
    digest: str

    def record(self) -> dict[str, Any]:
        """What is left to tell of the model where its weights were deleted."""
        return self.model_dump(mode="json", include={"source", "revision", "digest", "parameters"})


def read_info(params: Path) -> ModelInfo:
    """Read `model.json`; its absence says that this is no params folder."""
    if not (params / "model.json").exists():
        raise DistillError(f"{params} is not a params folder: it has no model.json")
    values = read_json(params / "model.json")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise DistillError(
            f"{params}/model.json has schema {values.get('schema_version')}, this distill reads "
            f"{SCHEMA_VERSION}: delete the folder and let it be made again"
        )
    return ModelInfo.model_validate(values)


def write_info(params: Path, info: ModelInfo) -> None:
    """Write `model.json`."""
    write_json(params / "model.json", info.model_dump(mode="json"))
