from pathlib import Path

import pytest
from tokenizers import Tokenizer as Rules
from tokenizers import models
from tokenizers_for_tests import CHATML, ZEPHYR, byte_tokenizer, save

from distill.errors import DistillError
from distill.files import write_json
from distill.text.compatibility import compare, must_be_open
from distill.text.tokenizer import load_tokenizer

LOGITS = ("logits", "topk_logits", "on_policy")


def params(folder: Path, template: str | None = CHATML, rows: int | None = None, **options: object) -> Path:
    """What of a params folder the comparison reads."""
    byte_tokenizer(folder / "tokenizer", template, **options)
    write_json(folder / "model.json", {"vocab_size": rows or load_tokenizer(folder / "tokenizer").real_vocab})
    return folder


def outcome(found: dict) -> tuple[dict[str, bool], dict[str, bool]]:
    checks = {check["name"]: check["equal"] for check in found["checks"]}
    return checks, {name: objective["open"] for name, objective in found["objectives"].items()}


def test_a_model_and_itself_may_do_everything(tmp_path: Path) -> None:
    folder = params(tmp_path / "a", generation_eos=4)
    found = compare(folder, folder)
    checks, objectives = outcome(found)
    assert found["schema"] == 1
    assert list(checks) == [
        "token_maps", "special_tokens", "chat_templates", "real_vocabulary", "padded_vocabulary"
    ]  # fmt: skip
    assert all(checks.values())
    assert objectives == dict.fromkeys(("sft", *LOGITS, "aligned_logits"), True)
    assert found["teacher"] == found["student"]
    assert found["teacher"]["eos_ids"] == [2, 4]
    assert found["teacher"]["padded_rows"] == 0


def test_padding_of_the_vocabulary_does_not_close_logits(tmp_path: Path) -> None:
    teacher, student = params(tmp_path / "a", rows=512), params(tmp_path / "b")
    found = compare(teacher, student)
    checks, objectives = outcome(found)
    assert (checks["token_maps"], checks["real_vocabulary"], checks["padded_vocabulary"]) == (
        True,
        True,
        False,
    )
    assert objectives["logits"]
    assert found["teacher"]["padded_rows"] == 512 - found["student"]["real_vocab"]


def test_different_token_maps_leave_text_and_what_is_spelled_alike(tmp_path: Path) -> None:
    teacher, student = params(tmp_path / "a"), params(tmp_path / "b", extra=("<new>",))
    found = compare(teacher, student)
    checks, objectives = outcome(found)
    assert not checks["token_maps"]
    assert objectives == {"sft": True, "aligned_logits": True} | dict.fromkeys(LOGITS, False)
    assert found["objectives"]["aligned_logits"]["why"] == (
        "approximate: 326 tokens are spelled alike, 326 of 326 and 326 of 327 are one of them or begin with one"
    )
    assert "ids do not mean the same to both (10 tokens have the same id" in found["objectives"]["logits"]["why"]


def test_what_is_not_open_is_refused_with_what_is(tmp_path: Path) -> None:
    found = compare(params(tmp_path / "a"), params(tmp_path / "b", extra=("<new>",)))
    must_be_open({"one": "sft"}, found)
    with pytest.raises(
        DistillError, match=r"stage kd: objective logits is not open .*: take one of sft, aligned_logits$"
    ):
        must_be_open({"one": "sft", "kd": "logits"}, found)


def test_vocabularies_without_text_in_common_leave_text_alone(tmp_path: Path) -> None:
    teacher = params(tmp_path / "a")
    rules = Rules(models.WordLevel({"<unk>": 0, "</s>": 1, "漢": 2}, unk_token="<unk>"))
    rules.add_special_tokens(["<unk>", "</s>"])
    save(tmp_path / "b/tokenizer", rules, CHATML, eos_token="</s>")
    write_json(tmp_path / "b/model.json", {"vocab_size": 3})
    with pytest.raises(DistillError, match=r"aligned_logits is not open .* no token of text .*: take one of sft$"):
        must_be_open({"kd": "aligned_logits"}, compare(teacher, tmp_path / "b"))


def test_templates_and_special_tokens_are_compared_by_what_they_are(tmp_path: Path) -> None:
    teacher = params(tmp_path / "a", CHATML, eos="<|im_end|>")
    found = compare(teacher, params(tmp_path / "b", ZEPHYR, pad="</s>"))
    details = {check["name"]: check["detail"] for check in found["checks"] if not check["equal"]}
    assert list(details) == ["special_tokens", "chat_templates"]
    assert details["special_tokens"] == (
        "eos_token '<|im_end|>' and '</s>'; pad_token None and '</s>'; ends of a turn [4] and [2]"
    )
    found = compare(teacher, params(tmp_path / "c", None, eos="<|im_end|>"))
    assert found["objectives"]["sft"]["why"].endswith("it has no chat template: chat_template none")
    assert not found["student"]["chat_template"]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"model\.json does not exist"):
        compare(tmp_path, tmp_path)
