"""Scripts and rules speak the same language: what a rule passes is what its script takes."""

import importlib.util
import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
RULES = {
    name: text
    for chapter in sorted((ROOT / "rules").glob("*.smk"))
    for name, text in re.findall(r"^(?:rule|checkpoint) (\w+):\n((?:    .*\n|\n)+)", chapter.read_text(), re.MULTILINE)
    if '"$SCRIPTS"' in text  # the others are names for what can be asked for
}


def command(name: str) -> click.Command:
    """The click command of a script."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("name", RULES)
def test_a_rule_passes_what_its_script_takes(name: str) -> None:
    shell = RULES[name][RULES[name].index("    shell:") :]
    assert f'"$PYTHON" "$SCRIPTS"/{name}.py' in shell, "a rule runs the script of its name"
    options = {flag: option for option in command(name).params for flag in option.opts}
    passed = set(re.findall(r'" (--[a-z-]+) ', shell)) | set(re.findall(r'f"(--[a-z-]+)=', RULES[name]))
    taken = {flag: option for flag, option in options.items() if isinstance(option, click.Option)}
    required = {flag for flag, option in taken.items() if option.required}
    assert required <= passed <= taken.keys()
    assert all(option.help for option in taken.values())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_keeps_the_house_order(name: str) -> None:
    order = ["input", "output", "params", "log", "benchmark", "threads", "resources", "wildcard_constraints",
             "message", "shell"]  # fmt: skip
    parts = re.findall(r"^    (\w+):", RULES[name], re.MULTILINE)
    assert parts == sorted(parts, key=order.index)
    assert {"log", "threads", "message", "shell"} <= set(parts)


def invoke(name: str, *arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command(name), [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"batches": {"0000": {"kept": 2}, "0001": {"kept": 1}}}))
    (tmp_path / "work").mkdir()
    (tmp_path / "work/0000.jsonl").write_text('{"prompt_id": "a"}\n')
    return path


def test_a_batch_is_copied_out(index: Path, tmp_path: Path) -> None:
    where = ["--index", index, "--work", tmp_path / "work", "--out", tmp_path / "out.jsonl"]
    assert invoke("prepare_prompts", *where, "--batch", "0000") == (0, "")
    assert (tmp_path / "out.jsonl").read_text() == '{"prompt_id": "a"}\n'
    code, said = invoke("prepare_prompts", *where, "--batch", "0001")
    assert code == 1
    assert f"is gone: delete {index}" in said
    code, said = invoke("prepare_prompts", *where, "--batch", "0007")
    assert code == 1
    assert f"batch 0007 is not in {index}, which ends at 0001: raise prompts.num_batches" in said


def test_a_broken_setting_is_no_traceback(tmp_path: Path) -> None:
    code, said = invoke("check_pair", "--teacher", tmp_path, "--student", tmp_path, "--out", tmp_path / "pair.json")
    assert code == 1
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "pair.json").exists()
