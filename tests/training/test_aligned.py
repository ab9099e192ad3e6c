"""The loss over spans of equal text: a direct float64 computation, finite differences, and what must not change it."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden_models import QUICKLY
from plain_divergences import DIVERGENCES, OWN, score
from tiny_models import CHARACTERS, SPECIAL, TEMPLATE, tiny_llama
from tokenizers import Tokenizer as Rules
from tokenizers import decoders, models
from tokenizers_for_tests import save

from distill.checkpoints.convert import import_checkpoint
from distill.config.stages import Stage
from distill.data.aligned import APART, MANY, ONE
from distill.data.loader import spans
from distill.errors import DistillError
from distill.files import read_json, read_jsonl
from distill.text.spelling import shared_of
from distill.training.loop import train
from distill.training.losses import chunked_sums
from distill.training.objectives import Own, objective_of
from distill.training.teacher import View

compiled = partial(jax.jit, compiler_options=QUICKLY)
TEACHER = [b"a", b"b", b"c", b"ab", b"abc", b"cd", None, "end", b"bc"]  # and two rows behind them
STUDENT = ["end", b"c", b"b", b"a", b"d", b"ca", "odd", b"ab", None, b"bb"]  # and three
SHARED = shared_of(TEACHER, STUDENT)
ROWS = [  # a | abc | c | bbc | end, and ca | abc | end: teacher's ids, and spans with those of TARGETS
    ([5, 0, 4, 2, 1, 8, 7],
     [(2, 1, 1, 1, ONE), (3, 2, 2, 1, MANY), (5, 1, 3, 1, ONE), (6, 2, 4, 2, MANY), (8, 1, 6, 1, ONE)]),
    ([0, 2, 0, 4, 7], [(1, 1, 1, 2, MANY), (2, 3, 3, 1, APART), (5, 2, 4, 1, APART)]),
]  # fmt: skip
TARGETS = [[9, 3, 7, 1, 1, 9, 1, 0], [5, 3, 2, 1, 1, 0, 6, 0]]


def stage(**changes: Any) -> Stage:
    return Stage(**{"init": "-", "steps": 10, "objective": "aligned_logits"} | changes)


def test_classes_are_beginnings_that_both_have() -> None:
    assert list(SHARED.spelled) == ["end", b"c", b"b", b"a", b"ab"]
    assert SHARED.teacher.of.tolist() == [3, 2, 1, 4, 4, 1, -1, 0, 2]
    assert SHARED.student.of.tolist() == [0, 1, 2, 3, -1, 1, -1, 4, -1, 2]
    assert SHARED.teacher.roots.tolist() == [7, 2, 1, 0, 3]
    assert SHARED.teacher.others.tolist() == [4, 5, 8]


class Case:
    """Hidden states and heads at random, in float64: a student of 13 rows, a teacher of 11."""

    def __init__(self, dtype=np.float64):
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.normal(0, 1.5, shape).astype(dtype)  # noqa: E731
        self.hidden, self.head = normal(2, 8, 4), normal(13, 4)
        self.view = View(score, normal(2, 6, 3), normal(11, 3), 9, shared=SHARED)
        mask = np.asarray([[0, *[1] * 7], [*[1] * 7, 0]], np.float32)
        rows = [(np.asarray(ids), np.asarray(found)) for ids, found in ROWS]
        self.batch = {"targets": np.asarray(TARGETS), "mask": mask} | spans(rows, 8, 6)

    def total(self, settings: Stage, hidden, head, chunk: int | None = None) -> jax.Array:
        own = Own(score, hidden, head)
        loss, parts, constants = objective_of(settings, self.batch, {}, self.view, own)
        return chunked_sums(score, loss, hidden, head, parts, constants, chunk)

    def slope(self, settings: Stage, chunk: int | None = None) -> tuple:
        value = lambda hidden, head: self.total(settings, hidden, head, chunk).loss  # noqa: E731
        return compiled(jax.value_and_grad(value, argnums=(0, 1)))(self.hidden, self.head)

    def apart(self, name: str, temperature: float) -> float:
        """Σ D over the spans, from probabilities."""
        total = 0.0
        for row, (theirs, found) in enumerate(ROWS):
            for own, count, other, their_count, kind in found:
                sides = [
                    (self.view.hidden[row], self.view.head, SHARED.teacher.of, theirs, other, their_count),
                    (self.hidden[row], self.head, SHARED.student.of, [0, *TARGETS[row]], own, count),
                ]
                total += DIVERGENCES[name](*(self.events(kind, temperature, *side) for side in sides))
        return total

    @staticmethod
    def events(kind: int, temperature: float, hidden, head, of, ids, first: int, count: int) -> np.ndarray:
        chain = 1.0
        for i in range(first, first + count):
            p = np.where(of < 0, 0, np.exp((hidden[i - 1] @ head.T)[: len(of)] / temperature))
            p /= p.sum()
            if i == first:
                classes = np.asarray([p[of == c].sum() for c in range(5)])
            chain *= p[ids[i]]
        if kind == APART:
            return np.asarray([chain, 1 - chain])
        if kind == MANY:
            classes[of[ids[first]]] -= chain
            return np.append(classes, chain)
        return classes


@pytest.mark.parametrize("name", DIVERGENCES)
def test_loss_and_gradient_are_those_of_the_formula_in_float64(name: str) -> None:
    """α T² Σ D + (1 − α) NLL, computed directly; its slope by central differences, spans cut by chunks of two."""
    case, settings = Case(), stage(divergence=name, alpha=0.7, temperature=1.7, **OWN.get(name, {}))
    scores, mask = case.hidden @ case.head.T, case.batch["mask"]
    chosen = np.take_along_axis(scores, case.batch["targets"][..., None], -1)[..., 0]
    nll = ((np.log(np.exp(scores).sum(-1)) - chosen) * mask).sum()
    along = [np.random.default_rng(1).normal(size=a.shape) for a in (case.hidden, case.head)]
    with jax.enable_x64(True):
        total, apart = compiled(partial(case.total, settings)), case.apart(name, 1.7)
        found = total(case.hidden, case.head)
        assert float(found.divergence) == pytest.approx(apart, rel=1e-10)
        assert float(found.loss) == pytest.approx(0.7 * 1.7**2 * apart + 0.3 * nll, rel=1e-10)
        value, slope = case.slope(settings, 2)
        assert float(value) == pytest.approx(float(found.loss), rel=1e-10)
        moved = [total(case.hidden + t * along[0], case.head + t * along[1]).loss for t in (1e-6, -1e-6)]
        wanted = float(moved[0] - moved[1]) / 2e-6
        assert sum(float((s * a).sum()) for s, a in zip(slope, along, strict=True)) == pytest.approx(wanted, rel=1e-6)


def test_nothing_outside_of_spans_is_seen() -> None:
    case, settings = Case(np.float32), stage(divergence="jsd", alpha=0.5, temperature=2.0)
    whole = case.slope(settings)
    outside = case.batch["teacher_span"] == 0
    assert outside.sum() == 2
    hidden = case.view.hidden.copy()
    hidden[outside], case.batch["teacher_targets"][outside] = np.nan, 10
    case.view = case.view._replace(hidden=hidden)
    case.batch["targets"][case.batch["mask"] == 0] = 12
    jax.tree.map(np.testing.assert_array_equal, case.slope(settings), whole)


def test_equal_tokens_are_the_plain_objective() -> None:
    """Spans are single tokens then, every token a class of its own."""
    case, words = Case(np.float32), [bytes([97 + i]) for i in range(9)]
    targets = np.asarray(TARGETS) % 9
    rows = [(np.asarray([0, *ids]), np.asarray([(i, 1, i, 1, ONE) for i in range(2 - row, 9 - row)]))
            for row, ids in enumerate(targets)]  # fmt: skip
    hidden = np.random.default_rng(3).normal(0, 1.5, (2, 8, 3)).astype(np.float32)
    case.view = case.view._replace(hidden=hidden, shared=shared_of(words, words))
    case.batch |= {"targets": targets} | spans(rows, 8, 8)
    for name in ("forward_kl", "reverse_kl"):
        settings = stage(divergence=name, alpha=0.6, temperature=1.5)
        plain = case.slope(settings.model_copy(update={"objective": "logits"}))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), case.slope(settings), plain)


def test_scores_of_neither_are_held_for_all_positions_at_once() -> None:
    shape, hidden, head = (4, 256), jnp.zeros((4, 256, 32)), jnp.zeros((32000, 32))
    words = [b"%d" % i for i in range(32000)]
    rows = [(np.arange(257), np.asarray([(1, 3, 1, 1, MANY), *((i, 1, i - 2, 1, ONE) for i in range(4, 200))]))] * 4
    data = {"targets": jnp.zeros(shape, jnp.int32), "mask": jnp.ones(shape)} | spans(rows, 256, 256)
    view = View(score, hidden, head, 32000, shared=shared_of(words, words))

    def total(hidden: jax.Array, head: jax.Array) -> jax.Array:
        loss, parts, constants = objective_of(stage(), data, {}, view, Own(score, hidden, head))
        return chunked_sums(score, loss, hidden, head, parts, constants).loss

    used = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, head).compile().memory_analysis()
    assert used.temp_size_in_bytes < 4 * 256 * 32000 * 4


def pair(folder: Path) -> tuple[Path, Path]:
    """A student that writes letters, and a teacher of other ids that writes some pairs of them as one."""
    pairs = ["ab", "cd", "e ", "th", "abc"]
    vocabulary = {token: i for i, token in enumerate([*pairs, "[end]", *reversed(CHARACTERS), *SPECIAL[2:]])}
    rules = Rules(models.BPE(vocabulary, [("a", "b"), ("c", "d"), ("e", " "), ("t", "h"), ("ab", "c")]))
    rules.decoder = decoders.Fuse()
    rules.add_special_tokens([*SPECIAL[2:], "[end]"])
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_llama(
            folder / f"{name}-hf", seed=seed, num_hidden_layers=1, eos_token_id=vocabulary["[end]"] if seed else 1
        )
        if seed:
            for file in (folder / "teacher-hf").glob("*token*"):
                file.unlink()
            save(folder / "teacher-hf", rules, TEMPLATE, eos_token="[end]", unk_token="<unk>")
        import_checkpoint(folder / f"{name}-hf", folder / name, dtype="float32", origin=name)
    return folder / "teacher", folder / "student"


def conversations(folder: Path, count: int) -> Path:
    """A dataset of them, with answers that have the teacher's pairs."""
    rng, words = np.random.default_rng(0), ["abc", "cd", "the ab", "bc", "dab", "he"]
    texts = [" ".join(rng.choice(words, 3)) for _ in range(count)]
    rows = [[{"role": "user", "content": "say"}, {"role": "assistant", "content": text}] for text in texts]
    pq.write_table(pa.table({"messages": rows}), folder / "data.parquet")
    return folder / "data.parquet"


@pytest.mark.slow
def test_a_pair_with_two_tokenizers_learns(tmp_path: Path) -> None:
    """First the teacher from the text, then the student from the teacher alone: its NLL of the text falls too."""
    teacher, student = pair(tmp_path)
    data, how = conversations(tmp_path, 72), {"template": "tokenizer", "max_length": 40}
    plain = {"init": "-", "batch_size": 8, "steps": 60, "learning_rate": 1e-2, "remat": "none"}
    train(teacher, [data], tmp_path / "taught", Stage(**plain), "taught", **how)
    settings = Stage(**plain, objective="aligned_logits", held_out=8, held_out_every=30)
    with pytest.raises(DistillError, match=r"stage kd: objective logits is not open .*take one of sft, aligned_logits"):
        train(student, [data], tmp_path / "kd", Stage(**plain, objective="logits"), "kd",
              teacher=tmp_path / "taught/params", **how)  # fmt: skip
    train(student, [data], tmp_path / "kd", settings, "kd", teacher=tmp_path / "taught/params", **how)
    first, *_, last = (row for row in read_jsonl(tmp_path / "kd/metrics.jsonl") if "held_out_loss" in row)
    start = read_jsonl(tmp_path / "kd/metrics.jsonl")[0]
    assert last["held_out_divergence"] < first["held_out_divergence"] < start["divergence"]
    assert last["held_out_loss"] < 0.5 * start["nll"]
    assert read_json(tmp_path / "kd/final.json")["dropped"] == {}
