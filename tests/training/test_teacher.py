"""Runs that have a teacher beside them, or the student's own answers for data, from start to end."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.info import read_info
from distill.checkpoints.store import load_weights, save_weights
from distill.config.stages import Stage
from distill.data.loader import Loader
from distill.data.masking import Examples
from distill.errors import DistillError
from distill.files import read_jsonl
from distill.models import decoder
from distill.parallel.mesh import make_mesh
from distill.training.loop import fit
from distill.training.on_policy import Sampler, prompt_of

pytestmark = pytest.mark.slow

STAGE = {"init": "-", "steps": 6, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": 2, "log_every": 1}
OWN = {**STAGE, "objective": "on_policy", "divergence": "jsd", "alpha": 0.5, "on_policy": {"share": 0.5, "slots": 8},
       "hidden_states": {"layers": {1: 2}, "weight": 0.5}}  # fmt: skip
STAGES = {
    "logits": {**STAGE, "objective": "logits", "alpha": {"start": 1, "end": 0.5}, "held_out": 2, "packing": True,
               "lora": {"rank": 2}, "teacher_dtype": "int8"},
    "on_policy": OWN,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student` and a wider `teacher` as params."""
    folder = tmp_path_factory.mktemp("pair")
    wider = {"vocab_size": 48, "hidden_size": 48, "num_hidden_layers": 3, "num_key_value_heads": 4}
    for seed, (name, changes) in enumerate({"student": {}, "teacher": wider}.items()):
        import_checkpoint(tiny_llama(folder / f"{name}-hf", seed=seed, **changes), folder / name, dtype="float32",
                          origin=name)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Of 4 to 11 tokens, of which all behind the third are learned."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 12, 24)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.concatenate([np.arange(n) >= 3 for n in lengths]).astype(np.uint8)
    return Examples(rng.integers(6, 35, offsets[-1]).astype(np.int32), mask, offsets, {})


def run(folder: Path, examples: Examples, out: Path, settings: dict, teacher: str = "teacher") -> list[dict]:
    length = 16 if settings.get("packing") else None
    fit(folder / "student", examples, out, Stage(**settings), "kd", teacher=folder / teacher, length=length)
    return read_jsonl(out / "metrics.jsonl")


@pytest.mark.parametrize("name", STAGES)
def test_a_cut_run_ends_in_the_same_bits(folder, examples, tmp_path, monkeypatch, name: str) -> None:
    """Also where the student draws its own batches: which ones, and every token of them."""

    class Cut(Exception):
        pass

    def cut(self: Loader, step: int, part: slice = slice(None)) -> dict:
        if step >= 3 and self.endless:
            raise Cut
        return batch(self, step, part)

    whole, batch = run(folder, examples, tmp_path / "whole", STAGES[name]), Loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", cut)
        with pytest.raises(Cut):
            run(folder, examples, tmp_path / "cut", STAGES[name])
    assert (tmp_path / "cut/steps/2").exists()
    resumed = run(folder, examples, tmp_path / "cut", STAGES[name])
    digests = {read_info(tmp_path / part / "params").digest for part in ("whole", "cut")}
    assert len(digests) == 1
    for one, two in zip(whole, resumed, strict=True):
        assert {key for key in one if one[key] != two[key]} <= {"seconds", "seconds_left", "tokens_per_second"}
        assert {"loss", "nll", "divergence", "accuracy", "operations"} <= one.keys()
    if name == "logits":
        assert whole[-1]["held_out_divergence"] > 0


def test_a_student_comes_nearer_to_its_teacher(folder, examples, tmp_path) -> None:
    rows = run(folder, examples, tmp_path, {**STAGE, "objective": "logits", "steps": 40, "learning_rate": 1e-2})
    assert rows[-1]["divergence"] < 0.5 * rows[0]["divergence"]
    assert rows[0]["loss"] == rows[0]["divergence"]


def test_the_student_answers_the_prompts_of_its_batch(folder, examples) -> None:
    """Greedily it is what the likeliest tokens make; a draw depends on step and weights alone."""
    config, params = load_weights(folder / "student", scanned=True)
    loader, mesh = Loader(examples, 4, 0), make_mesh(devices=jax.devices()[:1])

    def drawn(step: int, strategy: str, params: decoder.Params = params, part: slice = slice(0, 4)) -> dict:
        stage = Stage(**OWN | {"on_policy": {"sampling": {"strategy": strategy}, "slots": 4}})
        return Sampler(config, stage, loader, mesh, None, eos_ids=[1], real_vocab=35).batch(params, step, part)

    batch, data = drawn(3, "greedy"), loader.batch(2)
    for row in range(4):
        ids, learned = examples[loader.order(2)[row]]
        prompt, n = len(prompt_of(ids, learned)), int(batch["segment_ids"][row].sum())
        np.testing.assert_array_equal(batch["tokens"][row, :prompt], data["tokens"][row, :prompt])
        places = np.arange(loader.length)
        np.testing.assert_array_equal(batch["mask"][row], (places >= prompt - 1) & (places < n))
        hidden = decoder.forward(config, params, jnp.asarray(batch["tokens"][row, :n])[None])
        scores = decoder.logits(config, params, hidden)
        np.testing.assert_array_equal(batch["targets"][row, prompt - 1 : n], scores[0, prompt - 1 :, :35].argmax(-1))
    first, again, other = (drawn(step, "weighted")["targets"] for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(drawn(3, "weighted", part=slice(2, 4))["targets"], first[2:])
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    assert (drawn(3, "weighted", moved)["targets"] != first).any()


def test_the_share_of_own_batches_is_about_lambda(folder, examples) -> None:
    config, _ = load_weights(folder / "student")
    for share in (0.25, 1.0):
        stage = Stage(**OWN | {"on_policy": {"share": share}})
        sampler = Sampler(config, stage, Loader(examples, 4, 0), make_mesh(), None, eos_ids=[1], real_vocab=35)
        assert np.mean([sampler.chosen(step) for step in range(1, 2001)]) == pytest.approx(share, abs=0.03)


def test_what_stands_before_the_last_answer() -> None:
    ids = np.arange(10, 17)
    for mask, count in (("0001111", 3), ("0110011", 5), ("0110100", 4), ("1111111", 1)):
        learned = np.asarray([int(digit) for digit in mask], np.uint8)
        np.testing.assert_array_equal(prompt_of(ids, learned), ids[:count])


def test_a_teacher_that_gives_nan_is_named_with_the_step(folder, examples, tmp_path) -> None:
    _, weights = load_weights(folder / "teacher")
    (folder / "broken").mkdir()
    weights["layers"]["1"]["ffn"]["up"] = weights["layers"]["1"]["ffn"]["up"].at[0, 0].set(jnp.nan)
    save_weights(folder / "broken/weights", weights)
    for name in ("model.json", "tokenizer"):
        (folder / "broken" / name).symlink_to(folder / "teacher" / name)
    with pytest.raises(DistillError, match="stage kd: the teacher gave NaN at step 1, where the student's NLL is"):
        run(folder, examples, tmp_path, {**STAGE, "objective": "logits"}, "broken")
