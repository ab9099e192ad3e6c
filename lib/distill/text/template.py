"""A chat template that a recipe gives a model in place of its tokenizer's own: checked, and alone in its folder."""

import json
import re
from pathlib import Path

from distill.errors import DistillError
from distill.files import read_json

FILE = "chat_template.jinja"
GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own tag, of which jinja2 does not know


def is_template(value: str) -> bool:
    """Whether a setting is Jinja text, rather than the path of a file with it."""
    return "{{" in value or "{%" in value or "\n" in value


def read_template(value: str, setting: str) -> str:
    """The text that `value` is or names. A missing file, or what is no chat template, is a `DistillError`."""
    if not is_template(value):
        path = Path(value).expanduser()
        if not path.is_file():
            raise DistillError(
                f"{setting}: {value} is no file: name one with a Jinja template, or give its text "
                "(prompts.chat_template: none is for prompts without a template)"
            )
        setting, value = f"{setting}: {value}", path.read_text(encoding="utf-8")
    from jinja2 import TemplateSyntaxError, meta  # 50 ms: only who gives a template pays
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(GENERATION.sub("", value))
    except TemplateSyntaxError as error:
        raise DistillError(f"{setting} line {error.lineno} is no Jinja: {error.message}") from None
    if "messages" not in meta.find_undeclared_variables(parsed):
        raise DistillError(f"{setting} never writes `messages`: take a chat template, as transformers has them")
    return value


def give_template(folder: Path, text: str) -> None:
    """Let the tokenizer in `folder` have this template, and none else."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        values = read_json(config)
        if values.pop("chat_template", None) is not None:
            config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / FILE).write_text(text, encoding="utf-8")
