"""Tasks of reasoning-gym: judged by their own scorer, in a process that may not hang ours.

The package is optional. Where it is not installed, one of the same interface takes its place here.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill.config.dataset import Dataset, Verifier
from distill.data.filters import Sample, filters
from distill.data.reasoning import ReasoningGym, answer_of
from distill.data.verifiers import verifier
from distill.errors import DistillError
from distill.text.sources import Columns, asked

STANDIN = """
import time

def get_score_answer_fn(name):
    if name == "slow":
        return lambda answer, entry: time.sleep(60)
    if name == "broken":
        raise RuntimeError(name)
    if name != "chain_sum":
        raise ValueError(f"Dataset '{name}' not registered")
    print("a scorer may print")
    return lambda answer, entry: 1.0 if answer == entry["answer"] else 0.01
"""
ENTRY = {"question": "4 + 3 =", "answer": "7", "metadata": {"source_dataset": "chain_sum", "num_terms": 2}}


WANTED = Verifier(name="reasoning_gym", seconds=60)


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym").mkdir()
    (tmp_path / "reasoning_gym/__init__.py").write_text(STANDIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)


def sample(completion: str, entry: object = ENTRY) -> Sample:
    return Sample("p0", completion, "stop", entry if entry is None else json.dumps(entry))


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7", "7"),
        (" 7\n", "7"),
        ("<think>4 and 3</think>\n7", "7"),
        ("<answer>6</answer> or rather <Answer> 7 </Answer>.", "7"),
        ("<answer>7", "<answer>7"),
    ],
)
def test_the_answer_of_a_completion(completion: str, answer: str) -> None:
    assert answer_of(completion) == answer


def test_the_task_s_scorer_decides(standin: None) -> None:
    judge = ReasoningGym(WANTED)
    try:
        cases = [sample("7"), sample("8"), sample("7", None), sample("7", "chain_sum"), sample("7", {"answer": "7"})]
        assert [judge(case) for case in cases] == [None, "wrong", "no_reference", "no_reference", "no_reference"]
        broken = ENTRY | {"metadata": {"source_dataset": "broken"}}
        assert judge(sample("7", broken)) == "wrong", "a scorer that fails says nothing good"
        with pytest.raises(DistillError, match="reasoning_gym has no task chain_sums: check its name"):
            judge(sample("7", ENTRY | {"metadata": {"source_dataset": "chain_sums"}}))
        with pytest.raises(DistillError, match=r"no source_dataset in its metadata: set dataset\.verifier\.task"):
            judge(sample("7", ENTRY | {"metadata": {}}))
        assert judge(sample("7")) is None
    finally:
        judge.close()
    named = ReasoningGym(WANTED.model_copy(update={"task": "chain_sum", "min_score": 0.01}))
    try:
        assert named(sample("8", ENTRY | {"metadata": {}})) is None, "a share of the points may be enough"
    finally:
        named.close()


def test_a_scorer_that_does_not_end_is_ended(standin: None) -> None:
    judge = ReasoningGym(WANTED.model_copy(update={"task": "slow", "seconds": 0.3}))
    assert judge(sample("7")) == "scorer_timeout"
    assert judge.worker is None, "its process is gone"


def test_the_recipe_names_it(standin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = filters(Dataset(verifier=Verifier(name="reasoning_gym", task="chain_sum")))
    assert any(isinstance(one, ReasoningGym) for one in chosen)
    monkeypatch.setattr("distill.data.reasoning.find_spec", lambda name: None)
    with pytest.raises(DistillError, match="not installed: name the interpreter of an environment that has it"):
        verifier(WANTED)
    assert isinstance(verifier(WANTED.model_copy(update={"python": sys.executable})), ReasoningGym)


@pytest.mark.parametrize(("python", "said"), [("nowhere/python", "nowhere/python does not start"),
                                              ("true", "reasoning_gym does not load: try true -c")])  # fmt: skip
def test_an_interpreter_that_has_it_not_is_named(python: str, said: str) -> None:
    with pytest.raises(DistillError, match=said):
        ReasoningGym(WANTED.model_copy(update={"python": python}))(sample("7"))


def test_an_entry_may_be_an_object_of_the_dataset() -> None:
    [found] = asked({"prompt": "4 + 3 =", "entry": ENTRY}, Columns(None, "prompt", None, "entry"), "last")
    assert json.loads(found.reference) == ENTRY


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the optional package itself")
def test_real_tasks_are_judged_by_the_real_scorers() -> None:
    import reasoning_gym

    judge = ReasoningGym(WANTED)
    try:
        for task in ("chain_sum", "simple_equations", "countdown", "word_sorting"):
            for entry in reasoning_gym.create_dataset(task, size=3, seed=1):
                answer = entry["metadata"]["expression"] if task == "countdown" else entry["answer"]
                assert judge(sample(f"<answer>{answer}</answer>", entry)) is None, (task, entry)
                assert judge(sample("I do not know", entry)) == "wrong"
    finally:
        judge.close()
