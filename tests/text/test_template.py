"""A chat template that a recipe gives: read from text or a file, refused where it is none, alone in the folder."""

import json
from pathlib import Path

import pytest
from tokenizers_for_tests import CHATML, NO_END, byte_tokenizer

from distill.config.models import Model
from distill.config.recipe import Recipe
from distill.errors import DistillError
from distill.files import read_json
from distill.inputs import template_files
from distill.text.chat import render
from distill.text.template import give_template, read_template
from distill.text.tokenizer import load_tokenizer

MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


def test_a_template_is_text_or_a_file_of_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    assert read_template(str(file), "x") == read_template(CHATML, "x") == CHATML
    assert read_template(MARKED, "x") == MARKED, "transformers' own tag is known"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.jinja", "models.a.chat_template: nowhere.jinja is no file: name one with a Jinja template"),
        ("none", "prompts.chat_template: none is for prompts without a template"),
        ("{% for m in messages %}\n{{ m.content }", "models.a.chat_template line 2 is no Jinja: unexpected '}'"),
        ("{{ bos_token }}", "models.a.chat_template never writes `messages`: take a chat template"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(value: str, said: str) -> None:
    with pytest.raises(DistillError) as error:
        template_files(Model(source="org/a", chat_template=value), "a")
    assert said in str(error.value)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_given_template_is_the_only_one(tmp_path: Path, where: str) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer", None)
    values = read_json(folder / "tokenizer_config.json") if where == "tokenizer_config.json" else {}
    text = json.dumps(values | {"chat_template": CHATML})
    (folder / where).write_text(CHATML if where.endswith("jinja") else text)
    before = load_tokenizer(folder)
    give_template(folder, NO_END)
    after = load_tokenizer(folder)
    assert (before.chat_template, after.chat_template) == (CHATML, NO_END)
    assert render(after, [{"role": "user", "content": "hello"}], ask=True) == "User: hello\nAssistant:"
    assert before.hash != after.hash, "what was generated with the other one is not taken for this one's"


def test_a_model_s_name_follows_its_template_and_stays_without_one(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(CHATML)
    plain, text = Model(source="org/a"), Model(source="org/a", chat_template=CHATML)
    assert plain.id8 == Model(source="org/a", chat_template=None).id8 != text.id8
    assert "chat_template" not in plain.decides
    assert template_files(text, "a") == template_files(plain, "a") == []
    in_a_file = Model(source="org/a", chat_template=str(tmp_path / "mine.jinja"))
    assert template_files(in_a_file, "a") == [tmp_path / "mine.jinja"], "an input of the import, that an edit reruns"


def test_a_model_that_is_made_already_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.json").touch()
    with pytest.raises(DistillError, match=r"models\.a\.chat_template: .* is a params folder, which has its own"):
        template_files(Model(source=str(tmp_path), chat_template=CHATML), "a")
    with pytest.raises(ValueError, match="a model with derive has no chat_template"):
        Recipe.model_validate({
            "run": "x", "prompts": {"source": "x"}, "stages": {}, "models": {
                "teacher": {"source": "org/a"}, "student": {"derive": {"from": "teacher"}, "chat_template": CHATML},
            },
        })  # fmt: skip
