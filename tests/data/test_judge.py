"""The judge: asked once about each answer that needs it, patient with a server in trouble, strict with what it says."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from plain_server import JsonHandler, listening

from distill import retries
from distill.config.dataset import Dataset, Judge
from distill.data import judge
from distill.data.assemble import assemble
from distill.data.card import CardFacts
from distill.data.judge import Judged
from distill.data.schema import CompletionsMetadata, write_completions
from distill.errors import DistillError
from distill.files import read_json

PROMPT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer: {{ completion }}"
ASKED = ([{"role": "user", "content": "q"}], "good", None)


class Referee(JsonHandler):
    """`says` has what is said of an answer, by its words: a text, or a list of them and of status codes, in turn."""

    says: dict
    seen: Counter
    keys: set
    bodies: list

    def do_POST(self) -> None:
        body = self.body()
        text = body["messages"][0]["content"]
        name = text.rpartition("answer: ")[2]
        self.seen[name] += 1
        self.keys.add(self.headers.get("Authorization"))
        self.bodies.append((self.path, body))
        said = self.says[name]
        if isinstance(said, list):
            said = said.pop(0) if len(said) > 1 else said[0]
        if isinstance(said, int):
            self.say(said, {"error": "trouble"})
        else:
            self.say(200, {"choices": [{"message": {"content": said}}]})


@pytest.fixture
def referee(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Referee]]]:
    monkeypatch.setattr(retries, "LONGEST", 0.02)
    monkeypatch.delenv(judge.KEY, raising=False)
    handler = type("Handler", (Referee,), {"says": {}, "seen": Counter(), "keys": set(), "bodies": []})
    with listening(handler) as url:
        yield f"{url}/v1", handler


def settings(endpoint: str, **changes: object) -> Judge:
    return Judge(**{"endpoint": endpoint, "model": "referee-1", "prompt": PROMPT} | changes)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("It is fine.\nScore: 7", 7.0),
        ("Score: 7.5\n\n", 7.5),
        ("Score: 7 of 10", None),
        ("Score: 7\nThat is all.", None),
        ("Score: 11", None),
        ("Score: 0", None),
        ("7", None),
        ("", None),
        (None, None),
    ],
)
def test_a_score_is_the_last_line_and_within_its_bounds(tmp_path: Path, said: str | None, score: float | None) -> None:
    assert Judged(settings("http://127.0.0.1:9"), tmp_path)._score(said) == score


def test_what_was_judged_is_not_asked_again(tmp_path: Path, referee: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, handler = referee
    monkeypatch.setenv(judge.KEY, "a-secret")
    handler.says |= {"good": "Score: 9", "bad": "Score: 2", "odd": "no idea"}
    asked = [ASKED, (ASKED[0], "bad", None), (ASKED[0], "odd", None), ASKED]
    assert Judged(settings(endpoint), tmp_path).scores(asked) == [9.0, 2.0, None, 9.0]
    assert handler.seen == {"good": 1, "bad": 1, "odd": 3}, "three attempts at a score"
    path, body = handler.bodies[0]
    assert (path, body["model"], body["temperature"]) == ("/v1/chat/completions", "referee-1", 0.0)
    assert body["messages"][0]["content"].startswith("user: q\nanswer: ")
    assert handler.keys == {"Bearer a-secret"}
    assert not any(b"a-secret" in file.read_bytes() for file in tmp_path.iterdir())
    handler.seen.clear()
    assert Judged(settings(endpoint, min_score=3.0), tmp_path).scores(asked) == [9.0, 2.0, None, 9.0]
    assert not handler.seen
    assert Judged(settings(endpoint, max_tokens=9), tmp_path).scores(asked[:1]) == [9.0]
    assert handler.seen == {"good": 1}, "another question to the judge is a new one"


def test_a_torn_line_is_asked_again_and_the_others_stay(tmp_path: Path, referee: tuple) -> None:
    endpoint, handler = referee
    handler.says |= {"good": "Score: 9", "bad": "Score: 2"}
    asked = [ASKED, (ASKED[0], "bad", None)]
    Judged(settings(endpoint, concurrency=1), tmp_path).scores(asked)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    handler.seen.clear()
    assert Judged(settings(endpoint, concurrency=1), tmp_path).scores(asked) == [9.0, 2.0]
    assert handler.seen == {"bad": 1}


def test_passing_troubles_are_outlasted_and_lasting_ones_named(tmp_path: Path, referee: tuple) -> None:
    endpoint, handler = referee
    handler.says |= {"good": [503, 429, 500, "Score: 9"], "long": 400, "late": 500, "fine": "Score: 8"}
    judged = Judged(settings(endpoint), tmp_path)
    assert judged.scores([ASKED, (ASKED[0], "long", None)]) == [9.0, None]
    with pytest.raises(DistillError, match=r"judge referee-1 at http.* gives no answer \(500: .*what it has said is k"):
        judged.scores([(ASKED[0], "fine", None), (ASKED[0], "late", None)])
    handler.seen.clear()
    handler.says["late"] = "Score: 4"
    assert Judged(settings(endpoint), tmp_path).scores([(ASKED[0], "fine", None), (ASKED[0], "late", None)]) == [8, 4]
    assert handler.seen == {"late": 1}


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not take our key .*set DISTILL_JUDGE_API_KEY"), (404, "does not know model refer")]
)
def test_what_no_attempt_can_change_ends_at_once(tmp_path: Path, referee: tuple, status: int, said: str) -> None:
    endpoint, handler = referee
    handler.says["good"] = status
    with pytest.raises(DistillError, match=said):
        Judged(settings(endpoint), tmp_path).scores([ASKED])
    assert handler.seen == {"good": 1}


METADATA = CompletionsMetadata("ab" * 32, "cd" * 32, {"num_generations": 3}, 7)
ANSWERS = {"p0": ["good", "better", "bad"], "p1": ["odd", "fine", " "], "p2": ["alone", "alone", "alone"]}


def build(folder: Path, out: str, **options: object):
    rows = []
    for name, texts in ANSWERS.items():
        for sample, text in enumerate(texts):
            prompt, answer = [{"role": "user", "content": name}], [{"role": "assistant", "content": text}]
            rows.append({
                "prompt_id": name, "sample": sample, "prompt": prompt, "completion": answer,
                "messages": prompt + answer, "prompt_token_ids": [1], "completion_token_ids": [2],
                "logprobs": [-1.0], "finish_reason": "stop", "reference": None,
            })  # fmt: skip
    write_completions(folder / "0000.parquet", rows, METADATA)
    index = {"source": {"source": "x"}, "batches": {"0000": {"read": 3, "kept": 3, "dropped": {}}}}
    facts = CardFacts("run", "teacher", None, None)
    wanted = Dataset.model_validate(options)
    return assemble([folder / "0000.parquet"], index, wanted, 3, facts, folder / out, work=folder / "judged")


def test_the_best_by_the_judge_and_the_ledger_tells_why(tmp_path: Path, referee: tuple) -> None:
    endpoint, handler = referee
    handler.says |= {"good": "Score: 6", "better": "Score: 8", "bad": "Score: 1", "odd": "?", "fine": "Score: 5"}
    asks = settings(endpoint).model_dump(exclude_defaults=True)
    ledger = build(tmp_path, "best", judge=asks, best={"by": "judge"}, provenance=True)
    dropped = {"duplicate": 2, "empty": 1, "not_best": 2, "unjudged": 1}
    assert ledger.samples.encode("asked") == {"asked": 9, "kept": 3, "dropped": dropped}
    [shard] = (tmp_path / "best/data").iterdir()
    rows = {row["completion"][0]["content"]: row["judge_score"] for row in pq.read_table(shard).to_pylist()}
    assert rows == {"better": 8.0, "fine": 5.0, "alone": None}, "nobody asks about the only answer to a prompt"
    card = (tmp_path / "best/README.md").read_text()
    assert "referee-1" in card
    assert endpoint.removesuffix("/v1") not in card
    assert "name: judge_score" in card
    handler.seen.clear()
    handler.says["alone"] = "Score: 3"
    ledger = build(tmp_path, "least", judge=asks | {"min_score": 5.0})
    assert handler.seen == {"alone": 1}, "what is known of the others is kept"
    dropped = {"duplicate": 2, "empty": 1, "low_score": 2, "unjudged": 1}
    assert read_json(tmp_path / "least/ledger.json")["samples"] == {"asked": 9, "kept": 3, "dropped": dropped}
