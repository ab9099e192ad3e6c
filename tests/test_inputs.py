"""Which files a recipe reads from this disk, and which of its paths lead nowhere."""

from pathlib import Path

import pytest

from distill.config.models import Model
from distill.config.prompts import Prompts, Source
from distill.errors import DistillError
from distill.inputs import dataset_files, is_params, model_files, prompt_files, tokenizer_files


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        (folder / name).touch()
    return folder


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_a_checkpoint_is_what_the_import_reads(checkpoint: Path) -> None:
    model = Model(source=str(checkpoint), tokenizer=str(checkpoint))
    files = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert names(model_files(model, "teacher")) == files
    assert names(tokenizer_files(model, "teacher")) == [name for name in files if name != "model.safetensors"]


def test_a_params_folder_is_known_by_its_model_json(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert not is_params(tmp_path)
    (tmp_path / "model.json").touch()
    assert is_params(tmp_path)
    assert names(model_files(Model(source=str(tmp_path)), "student")) == ["model.json"]


def test_a_hub_id_has_no_files() -> None:
    assert model_files(Model(source="org/name", tokenizer="org/other"), "teacher") == []
    assert tokenizer_files(Model(source="org/name", tokenizer="org/other"), "teacher") == []
    assert dataset_files(Source(source="org/data"), "prompts") == []


def test_a_dataset_is_a_file_or_all_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("b.jsonl", "data/a.parquet", ".hidden"):
        (tmp_path / name).touch()
    assert names(dataset_files(Source(source=str(tmp_path / "b.jsonl")), "prompts")) == ["b.jsonl"]
    assert names(dataset_files(Source(source=str(tmp_path)), "prompts")) == ["b.jsonl", "a.parquet"]


def test_prompts_read_all_their_sources_and_what_they_exclude(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    mix = [{"source": str(tmp_path / "a.jsonl")}, {"source": "org/data"}, {"source": str(tmp_path / "b.jsonl")}]
    exclude = [{"source": str(tmp_path / "test.jsonl")}]
    assert names(prompt_files(Prompts(mix=mix, exclude=exclude))) == ["a.jsonl", "b.jsonl", "test.jsonl"]
    assert names(prompt_files(Prompts(**mix[0]))) == ["a.jsonl"]
    mix[1]["source"] = "./no.jsonl"
    with pytest.raises(DistillError, match=r"prompts\.mix\.1\.source: \./no\.jsonl does not exist"):
        prompt_files(Prompts(mix=mix))


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (lambda at: model_files(Model(source=f"{at}/no"), "teacher"), "models.teacher.source: folder .*/no does not"),
        (lambda at: model_files(Model(source=str(at)), "teacher"), "models.teacher.source: .* has no config.json"),
        (lambda at: tokenizer_files(Model(source="a/b", tokenizer=f"{at}/no"), "x"), "models.x.tokenizer: folder"),
        (lambda at: dataset_files(Source(source="no.jsonl"), "prompts"), "prompts.source: no.jsonl does not exist"),
        (lambda at: dataset_files(Source(source=str(at)), "evaluation"), "evaluation.source: folder .* is empty"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path: Path, look: object, said: str) -> None:
    with pytest.raises(DistillError, match=said):
        look(tmp_path)
