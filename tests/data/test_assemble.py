"""From completions to a folder that `load_dataset` reads, with a ledger in which every sample is found."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.config.dataset import Dataset
from distill.data.assemble import assemble, digest_of
from distill.data.card import CardFacts
from distill.data.schema import CompletionsMetadata, write_completions
from distill.errors import DistillError
from distill.files import file_digest
from distill.licenses import license_of
from distill.text import chat

METADATA = CompletionsMetadata("ab" * 32, "cd" * 32, {"num_generations": 2, "slots": 64}, 7)
FACTS = CardFacts("demo", "acme/teacher", "c0ffee", None)
Answer = tuple[str, str]  # text, finish_reason


def batch(folder: Path, name: str, answers: dict[str, list[Answer]], metadata: CompletionsMetadata = METADATA) -> Path:
    """A completions file: the answers to each prompt; every reference is `four`."""
    rows = []
    for prompt_id, samples in answers.items():
        for sample, (text, finish_reason) in enumerate(samples):
            prompt, completion = (
                [{"role": "user", "content": prompt_id}],
                [{"role": "assistant", "content": text}],
            )
            rows.append({
                "prompt_id": prompt_id, "sample": sample, "prompt": prompt, "completion": completion,
                "messages": prompt + completion, "prompt_token_ids": [1], "completion_token_ids": [2],
                "logprobs": [-1.0], "finish_reason": finish_reason, "reference": "four",
            })  # fmt: skip
    path = folder / f"{name}.parquet"
    write_completions(path, rows, metadata)
    return path


def index(**kept: int) -> dict:
    """index.json of batches that lost one prompt each."""
    source = {"source": "acme/prompts", "config": None, "split": "train", "commit": "f" * 40}
    batches = {name: {"hash": "", "read": n + 1, "kept": n, "dropped": {"overlong": 1}} for name, n in kept.items()}
    return {"schema": 1, "source": source, "batches": batches}


GOOD = {"p0": [("four", "stop"), ("five", "stop")], "p1": [("four", "stop"), ("four", "stop")]}
POOR = {"p2": [("four", "length"), (" \n", "stop")]}


def build(folder: Path, *, generations: int = 2, facts: CardFacts = FACTS, **options: object):
    paths = [batch(folder, "0000", GOOD), batch(folder, "0001", POOR)]
    found = index(**{"0000": 2, "0001": 1})
    return assemble(paths, found, Dataset(**options), generations, facts, folder / "dataset")


def read_rows(dataset: Path) -> list[dict]:
    return [row for path in sorted((dataset / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_rows_ledger_and_summary(tmp_path: Path) -> None:
    ledger = build(tmp_path)
    rows = read_rows(tmp_path / "dataset")
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [("p0", 0), ("p0", 1), ("p1", 0)]
    assert rows[1] == {
        "prompt": [{"role": "user", "content": "p0"}],
        "completion": [{"role": "assistant", "content": "five"}],
        "messages": [{"role": "user", "content": "p0"}, {"role": "assistant", "content": "five"}],
        "prompt_id": "p0",
        "sample": 1,
    }
    found = json.loads((tmp_path / "dataset" / "ledger.json").read_text())
    assert found == ledger.encode()
    assert found == {
        "schema": 1,
        "num_generations": 2,
        "prompts": {"read": 5, "kept": 3, "dropped": {"overlong": 2}},
        "samples": {"asked": 6, "kept": 3, "dropped": {"duplicate": 1, "empty": 1, "length": 1}},
        "batches": {
            "0000": {
                "prompts": {"read": 3, "kept": 2, "dropped": {"overlong": 1}},
                "samples": {"asked": 4, "kept": 3, "dropped": {"duplicate": 1}},
            },
            "0001": {
                "prompts": {"read": 2, "kept": 1, "dropped": {"overlong": 1}},
                "samples": {"asked": 2, "kept": 0, "dropped": {"empty": 1, "length": 1}},
            },
        },
    }


def test_load_dataset_reads_the_folder(tmp_path: Path) -> None:
    import datasets

    build(tmp_path, shard_rows=2)
    rows = datasets.load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["prompt", "completion", "messages", "prompt_id", "sample"]
    assert list(rows) == read_rows(tmp_path / "dataset")
    streamed = datasets.load_dataset(str(tmp_path / "dataset"), split="train", streaming=True)
    assert list(streamed) == list(rows)
    assert streamed.features == rows.features
    told = datasets.load_dataset_builder(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache")).info.splits
    assert told is not None, "`datasets` takes no notice of splits without names, rows and bytes"
    assert (told["train"].num_examples, told["train"].num_bytes) == (3, rows.info.splits["train"].num_bytes)


def test_messages_are_what_axolotl_s_chat_template_type_takes(tmp_path: Path) -> None:
    """`type: chat_template` with its defaults: a column `messages` of turns with `role` and `content`, both text, of
    which the assistant's are trained on."""
    import datasets

    build(tmp_path)
    rows = datasets.load_dataset(str(tmp_path / "dataset"), split="train", streaming=True)
    text = datasets.Value("string")
    assert rows.features["messages"] == datasets.List({"role": text, "content": text})
    for row in rows:
        roles = [turn["role"] for turn in row["messages"]]
        assert set(roles) <= {"system", "user", "assistant"}
        assert roles[-1] == "assistant"
        assert row["messages"] == row["prompt"] + row["completion"]


def test_shards_have_their_rows_and_know_how_many_they_are(tmp_path: Path) -> None:
    build(tmp_path, shard_rows=2, keep_length=True, keep_duplicates=True)
    shards = sorted((tmp_path / "dataset" / "data").iterdir())
    assert [path.name for path in shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [pq.read_metadata(path).num_rows for path in shards] == [2, 2, 1]
    assert pq.read_metadata(shards[0]).row_group(0).column(0).compression == "ZSTD"


def test_the_verifier_keeps_what_is_right(tmp_path: Path) -> None:
    ledger = build(tmp_path, verifier={"name": "exact_match"})
    assert ledger.samples.dropped == {"wrong": 1, "duplicate": 1, "length": 1, "empty": 1}


def test_a_prompt_is_held_out_with_all_its_samples(tmp_path: Path) -> None:
    import datasets

    answers = {f"p{i}": [("four", "stop"), ("five", "stop")] for i in range(200)}
    path = batch(tmp_path, "0000", answers)
    assemble([path], index(**{"0000": 200}), Dataset(held_out=0.2, shard_rows=150), 2, FACTS, tmp_path / "dataset")
    names = [file.name for file in sorted((tmp_path / "dataset/data").iterdir())]
    assert names[0] == "test-00000-of-00001.parquet"
    assert names[1:] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    found = datasets.load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    train, test = (set(found[split]["prompt_id"]) for split in ("train", "test"))
    assert not train & test
    assert train | test == set(answers)
    assert 25 <= len(test) <= 55
    assert len(found["test"]) == 2 * len(test)
    assemble([path], index(**{"0000": 200}), Dataset(held_out=0.4), 2, FACTS, tmp_path / "more")
    more = {row["prompt_id"] for row in pq.read_table(tmp_path / "more/data/test-00000-of-00001.parquet").to_pylist()}
    assert test < more, "a larger share holds the smaller one"
    with pytest.raises(DistillError, match=r"split test of the dataset is empty, dataset\.held_out is 0\.0001"):
        build(tmp_path, held_out=0.0001)


def test_all_turns_of_a_conversation_are_on_one_side(tmp_path: Path) -> None:
    """A later turn has the earlier ones in it: they would be learned, and asked for as held out."""
    rows = []
    for i in range(60):
        history = [{"role": "system", "content": "s"}]
        for turn in range(3):
            history = [*history, {"role": "user", "content": f"{i} {turn}"}]
            answer = [{"role": "assistant", "content": f"yes {i} {turn}"}]
            rows.append({
                "prompt_id": chat.prompt_id(history), "sample": 0, "prompt": history, "completion": answer,
                "messages": history + answer, "prompt_token_ids": [1], "completion_token_ids": [2],
                "logprobs": [-1.0], "finish_reason": "stop", "reference": None,
            })  # fmt: skip
            history = history + answer
    write_completions(tmp_path / "0000.parquet", rows, METADATA)
    assemble([tmp_path / "0000.parquet"], index(**{"0000": 180}), Dataset(held_out=0.3), 1, FACTS, tmp_path / "dataset")
    sides = [
        {row["prompt"][1]["content"] for path in (tmp_path / "dataset/data").glob(f"{name}-*")
         for row in pq.read_table(path).to_pylist()}
        for name in ("train", "test")
    ]  # fmt: skip
    assert sum(map(len, sides)) == 60
    assert len(sides[1]) > 5


def test_samples_with_nothing_to_follow_are_counted(tmp_path: Path) -> None:
    lacking = replace(METADATA, unasked=[("p1", 1, "overlong"), ("p2", 0, "unanswered"), ("p2", 1, "unanswered")])
    path = batch(tmp_path, "0000", {"p0": GOOD["p0"], "p1": [("four", "stop")]}, lacking)
    ledger = assemble([path], index(**{"0000": 3}), Dataset(), 2, FACTS, tmp_path / "dataset")
    dropped = {"overlong": 1, "unanswered": 2}
    assert ledger.samples.encode("asked") == {"asked": 6, "kept": 3, "dropped": dropped}


def test_a_row_can_tell_where_it_comes_from_and_lines_are_the_same_rows(tmp_path: Path) -> None:
    import datasets

    build(tmp_path, provenance=True, jsonl=True)
    rows = datasets.load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    wanted = {"batch": "0000", "finish_reason": "stop", "reference": "four", "mean_logprob": -1.0,
              "completion_tokens": 1, "teacher": METADATA.teacher, "seed": 7}  # fmt: skip
    assert [{name: row[name] for name in wanted} for row in rows] == [wanted] * 3
    lines = (tmp_path / "dataset/jsonl/train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(rows)


def test_thoughts_are_taken_out_before_anything_is_judged(tmp_path: Path) -> None:
    answers = {"p0": [("<think>so</think>\nfour", "stop"), ("<think>or so</think>four", "stop")],
               "p1": [("<think>endless", "stop"), ("plain", "stop")]}  # fmt: skip
    path = batch(tmp_path, "0000", answers)
    options = {"completions": [path], "index": index(**{"0000": 2}), "num_generations": 2, "card": FACTS}
    ledger = assemble(settings=Dataset(think="drop"), out=tmp_path / "dataset", **options)
    assert ledger.samples.dropped == {"duplicate": 1, "empty": 1}
    rows = read_rows(tmp_path / "dataset")
    assert [row["completion"] for row in rows] == [[{"role": "assistant", "content": t}] for t in ("four", "plain")]
    assert [row["messages"] for row in rows] == [row["prompt"] + row["completion"] for row in rows]
    assert assemble(settings=Dataset(), out=tmp_path / "kept", **options).samples.kept == 4


def test_an_empty_batch_goes_through_everything(tmp_path: Path) -> None:
    paths = [batch(tmp_path, "0000", {}), batch(tmp_path, "0001", GOOD)]
    wanted = Dataset(provenance=True, think="drop", best={"by": "logprob"}, jsonl=True, quality={"min_logprob": -2})
    ledger = assemble(paths, index(**{"0000": 0, "0001": 2}), wanted, 2, FACTS, tmp_path / "dataset")
    assert (ledger.samples.total, ledger.samples.kept) == (4, 2)
    assert [row["batch"] for row in read_rows(tmp_path / "dataset")] == ["0001", "0001"]


def test_the_best_sample_of_each_prompt(tmp_path: Path) -> None:
    ledger = build(tmp_path, best={"by": "first"})
    assert ledger.samples.dropped == {"not_best": 1, "duplicate": 1, "length": 1, "empty": 1}
    assert [row["prompt_id"] for row in read_rows(tmp_path / "dataset")] == ["p0", "p1"]
    assert '| filters | `{"best": {"by": "first"}}` |' in (tmp_path / "dataset/README.md").read_text()


def test_licenses_are_those_of_the_cards_and_never_invented(tmp_path: Path) -> None:
    assert license_of(tmp_path) is None
    (tmp_path / "README.md").write_text("# no front matter\nlicense: mit\n---\n---\n")
    assert license_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: [mit, cc-by-4.0]\ntags: [x]\n---\n\n# card\n")
    assert license_of(tmp_path) == "mit, cc-by-4.0"
    build(tmp_path, facts=CardFacts("demo", "acme/teacher", None, None, "llama2"))
    card = (tmp_path / "dataset/README.md").read_text()
    assert "unknown: the teacher's own card says llama2, that of the prompts nothing" in card
    assert "license" not in yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_the_licenses_of_a_mix_beside_its_own(tmp_path: Path) -> None:
    mix = [{"source": "a", "license": "mit"}, {"source": "b"}, {"source": "c", "license": "cc-by-4.0"}]
    known = index(**{"0000": 2}) | {"source": {"source": "1 × a + …", "mix": mix}, "chosen": {"turns": "each"}}
    paths = [batch(tmp_path, "0000", GOOD)]
    facts = CardFacts("demo", "acme/teacher", None, "apache-2.0", "llama2")
    assemble(paths, known, Dataset(), 2, facts, tmp_path / "dataset")
    card = (tmp_path / "dataset/README.md").read_text()
    assert "| license | apache-2.0 (the teacher's own card says llama2, that of the prompts mit, cc-by-4.0) |" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert '| prompts\' settings | `{"turns": "each"}` |' in card


def test_the_teachers_digest_outlives_its_weights(tmp_path: Path) -> None:
    params = tmp_path / "params"
    assert digest_of(params) is None
    (tmp_path / "imported.json").write_text('{"digest": "abc"}')
    assert digest_of(params) == "abc"
    params.mkdir()
    (params / "model.json").write_text('{"digest": "def"}')
    assert digest_of(params) == "def"


def test_the_card_has_front_matter_counts_and_origin(tmp_path: Path) -> None:
    build(tmp_path)
    card = (tmp_path / "dataset" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert "license" not in values
    assert values["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    (split,) = values["dataset_info"]["splits"]
    assert (split["name"], split["num_examples"]) == ("train", 3)
    facts = [
        "`acme/teacher` at revision `c0ffee`", METADATA.teacher, "acme/prompts", "f" * 40, '"slots": 64',
        "seed 7", "unknown: see those of the teacher", "| went in | 5 | 6 |",
        "| dropped: overlong | 2 |  |", "| dropped: empty |  | 1 |", "| kept | 3 | 3 |",
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in body] == []
    build(tmp_path, facts=CardFacts("demo", "acme/teacher", None, "apache-2.0"))
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert "None" not in card


def test_the_card_says_who_answered(tmp_path: Path) -> None:
    cards = []
    for metadata in (METADATA, replace(METADATA, foreign="acme/hosted")):
        path, out = batch(tmp_path, "0000", GOOD, metadata), tmp_path / "dataset"
        assemble([path], index(**{"0000": 2}), Dataset(provenance=True), 2, FACTS, out)
        cards.append(" ".join((out / "README.md").read_text().split()))
    ours, theirs = cards
    assert "their number, the teacher's digest, the seed" in ours
    assert "give the same answers on one kind of machine" in ours
    assert "where the server told them, the model's name there, the seed" in theirs
    assert "`acme/hosted`, a server that is not ours: not reproducible" in theirs
    assert "same answers" not in theirs


def test_the_same_completions_give_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        build(tmp_path)
        files = [path for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
        digests.append({path.name: file_digest(path) for path in files})
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_nothing_left_is_an_error_with_the_counts_and_no_folder(tmp_path: Path) -> None:
    path = batch(tmp_path, "0001", POOR)
    complaint = r"no sample is left .*2 asked, 0 kept, dropped: empty 1, length 1\): raise max_target_length"
    with pytest.raises(DistillError, match=complaint):
        assemble([path], index(**{"0001": 1}), Dataset(), 2, FACTS, tmp_path / "dataset")
    assert [entry.name for entry in tmp_path.iterdir()] == ["0001.parquet"]


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    paths = [batch(tmp_path, "0000", GOOD), batch(tmp_path, "0001", POOR)]
    out = tmp_path / "dataset"
    with pytest.raises(DistillError, match="batches 0001 are in the prompt index or among the completions"):
        assemble(paths, index(**{"0000": 2}), Dataset(), 2, FACTS, out)
    with pytest.raises(DistillError, match=r"0001\.parquet have 2 samples, not 2 prompts × 2: delete the file"):
        assemble(paths, index(**{"0000": 2, "0001": 2}), Dataset(), 2, FACTS, out)
    other = CompletionsMetadata("ef" * 32, METADATA.tokenizer_hash, METADATA.sampling, METADATA.seed)
    batch(tmp_path, "0001", POOR, other)
    with pytest.raises(DistillError, match=r"0001\.parquet: teacher is efef.*abab.* is expected: delete the file"):
        assemble(paths, index(**{"0000": 2, "0001": 1}), Dataset(), 2, FACTS, out, METADATA.teacher)
    with pytest.raises(DistillError, match=r"0001\.parquet were made otherwise than the first batch"):
        assemble(paths, index(**{"0000": 2, "0001": 1}), Dataset(), 2, FACTS, out)
    assert not out.exists()


ANSWER = st.tuples(st.sampled_from(["four", "five", " "]), st.sampled_from(["stop", "length"]))
ANSWERS = st.lists(st.lists(ANSWER, min_size=2, max_size=2), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANSWERS, min_size=1, max_size=3), st.booleans(), st.booleans(), st.integers(1, 5))
def test_every_sample_is_in_a_shard_or_in_the_ledger(
    tmp_path: Path, batches: list, keep_length: bool, verified: bool, shard_rows: int
) -> None:
    paths = [
        batch(tmp_path, f"{i:04d}", {f"p{i}{j}": pair for j, pair in enumerate(answers)})
        for i, answers in enumerate(batches)
    ]
    options = {"keep_length": keep_length, "shard_rows": shard_rows} | (
        {"verifier": {"name": "exact_match"}} if verified else {}
    )
    found = index(**{path.stem: len(answers) for path, answers in zip(paths, batches, strict=True)})
    everything = [
        (f"p{i}{j}", text, finish_reason)
        for i, answers in enumerate(batches)
        for j, pair in enumerate(answers)
        for text, finish_reason in pair
    ]
    wanted = {
        (prompt, text)
        for prompt, text, finish_reason in everything
        if text.strip() and (keep_length or finish_reason == "stop") and (not verified or text == "four")
    }
    if not wanted:
        with pytest.raises(DistillError, match="no sample is left"):
            assemble(paths, found, Dataset(**options), 2, FACTS, tmp_path / "dataset")
        return
    samples = assemble(paths, found, Dataset(**options), 2, FACTS, tmp_path / "dataset").samples
    rows = read_rows(tmp_path / "dataset")
    assert samples.total == len(everything)
    assert samples.total - samples.kept == sum(samples.dropped.values())
    assert samples.kept == len(rows)
    assert Counter((row["prompt_id"], row["completion"][0]["content"]) for row in rows) == Counter(wanted)
