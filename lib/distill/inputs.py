"""The files on this disk that a recipe reads, known before anything runs: a changed one is noticed."""

from pathlib import Path

from distill.config.models import Model
from distill.config.prompts import Prompts, Source
from distill.errors import DistillError
from distill.text.template import is_template, read_template

MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt")  # the weights, and all that goes with them


def is_params(folder: Path) -> bool:
    """Whether `folder` holds an imported or trained model rather than a Hugging Face checkpoint."""
    return (folder / "model.json").is_file() and (folder / "weights").is_dir()


def model_files(model: Model, name: str) -> list[Path]:
    """What of a local model decides the import; nothing for a Hub id. `name` is the model's in the recipe."""
    folder = model.local
    if folder is None:
        return []
    if not folder.is_dir():
        raise DistillError(f"models.{name}.source: folder {model.source} does not exist")
    if is_params(folder):
        return [folder / "model.json"]
    if not (folder / "config.json").is_file():
        raise DistillError(f"models.{name}.source: {model.source} has no config.json: it is no checkpoint")
    return sorted(file for file in folder.iterdir() if file.suffix in MODEL and file.is_file())


def template_files(model: Model, name: str) -> list[Path]:
    """The file of a model's `chat_template`, where it is one. What is no template is a `DistillError`."""
    if model.chat_template is None:
        return []
    if model.local and is_params(model.local):
        raise DistillError(f"models.{name}.chat_template: {model.source} is a params folder, which has its own")
    read_template(model.chat_template, f"models.{name}.chat_template")
    return [] if is_template(model.chat_template) else [Path(model.chat_template).expanduser()]


def config_file(model: Model, folders: list[Path]) -> Path | None:
    """What describes a model without its weights: the local folder's own file, or the first that is in `folders`."""
    places = [model.local] if model.local else folders
    files = [place / name for place in places for name in ("model.json", "config.json")]
    return next((file for file in files if file.is_file()), None)


def tokenizer_files(model: Model, name: str) -> list[Path]:
    """Files of a local `tokenizer` override; nothing where there is none or it is a Hub id."""
    if model.tokenizer is None or (folder := Model(source=model.tokenizer).local) is None:
        return []
    if not folder.is_dir():
        raise DistillError(f"models.{name}.tokenizer: folder {model.tokenizer} does not exist")
    return sorted(file for file in folder.iterdir() if file.suffix in MODEL[1:] and file.is_file())


def prompt_files(prompts: Prompts) -> list[Path]:
    """Files of all local datasets that prompts are made of, or that are looked for in them."""
    several = [(source, f"prompts.mix.{i}") for i, source in enumerate(prompts.mix)] or [(prompts, "prompts")]
    several += [(source, f"prompts.exclude.{i}") for i, source in enumerate(prompts.exclude)]
    return [file for source, name in several for file in dataset_files(source, name)]


def dataset_files(source: Source, name: str) -> list[Path]:
    """Files of a local dataset; nothing for a Hub id. `name` is the setting's in the recipe."""
    path = source.local
    if path is None or path.is_file():
        return [path] if path else []
    if not path.is_dir():
        raise DistillError(f"{name}.source: {source.source} does not exist")
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DistillError(f"{name}.source: folder {source.source} is empty")
    return files
