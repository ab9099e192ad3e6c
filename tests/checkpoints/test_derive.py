"""A student made of a teacher's weights: what is kept is the teacher's, and what speaks least goes first."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import tiny_llama

from distill.checkpoints.convert import export_checkpoint, import_checkpoint, load_checkpoint
from distill.checkpoints.derive import chosen_layers, derive_student
from distill.checkpoints.info import read_info
from distill.checkpoints.store import flat, load_weights, nest
from distill.config.models import Derive
from distill.config.reading import load_recipe
from distill.errors import DistillError
from distill.models import decoder
from distill.models.activations import squared_norms
from distill.models.config import ModelConfig
from distill.models.families import config_from_hf

pytestmark = pytest.mark.slow

PROMPTS = [[6 + (i * j) % 29 for j in range(1, 5 + i)] for i in range(9)]
HEADS, KV, FFN = 8, 2, 24


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers of eight heads over two keys, 24 neurons."""
    folder = tmp_path_factory.mktemp("teacher")
    hf = tiny_llama(
        folder / "hf", num_hidden_layers=5, num_attention_heads=HEADS, num_key_value_heads=KV, intermediate_size=FFN
    )
    import_checkpoint(hf, folder / "params", dtype="float32", origin="tiny")
    return folder / "params"


def derived(teacher: Path, out: Path, **how: object) -> tuple[ModelConfig, decoder.Params]:
    derive_student(teacher, out, Derive(parent="teacher", **how), dtype="float32", origin="x", prompts=PROMPTS)
    return load_weights(out)


def logits(config: ModelConfig, params: decoder.Params) -> np.ndarray:
    tokens = jnp.asarray([[7, 8, 9, 10, 11, 12]], jnp.int32)
    return np.asarray(decoder.logits(config, params, decoder.forward(config, params, tokens)))


def test_all_of_it_is_the_teacher(teacher: Path, tmp_path: Path) -> None:
    student = derived(teacher, tmp_path / "params", layers=5, heads=HEADS, intermediate=FFN)
    np.testing.assert_array_equal(logits(*student), logits(*load_weights(teacher)))
    assert read_info(tmp_path / "params").digest == read_info(teacher).digest


def test_layers_are_those_that_are_asked_for(teacher: Path, tmp_path: Path) -> None:
    whole, (config, params) = load_weights(teacher)[1], derived(teacher, tmp_path / "params", layers=[0, 2, 4])
    assert len(config.layers) == 3
    for number, of in enumerate((0, 2, 4)):
        ours, theirs = flat(params["layers"][str(number)]), flat(whole["layers"][str(of)])
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    info, before = read_info(tmp_path / "params"), read_info(teacher)
    assert (info.tokenizer_hash, info.real_vocab) == (before.tokenizer_hash, before.real_vocab)
    assert info.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    export_checkpoint(tmp_path / "params", tmp_path / "hf")
    np.testing.assert_array_equal(logits(*load_checkpoint(tmp_path / "hf", dtype="float32")), logits(config, params))


@pytest.mark.parametrize(("count", "layers"), [(1, [0]), (2, [0, 29]), (8, [0, 4, 8, 12, 17, 21, 25, 29])])
def test_so_many_layers_are_spread_evenly(count: int, layers: list[int]) -> None:
    config = config_from_hf(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
         "num_hidden_layers": 30, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
         "max_position_embeddings": 64}
    )  # fmt: skip
    assert chosen_layers(config, Derive(parent="t", layers=count)) == layers


def norms(teacher: Path) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt by itself, without padding."""
    total: list = [0.0, 0.0]
    for ids in PROMPTS:
        found = squared_norms(*load_weights(teacher), np.asarray([ids], np.int32), np.asarray([len(ids)], np.int32))
        total = [a + b for a, b in zip(total, found, strict=True)]
    return total[0], total[1]


def silenced(teacher: Path, folder: Path, axes: str, quiet: dict[int, list[int]]) -> tuple[ModelConfig, decoder.Params]:
    """The teacher with some entries of an axis of one weight a layer at zero."""
    config, params = load_weights(teacher)
    leaves = {path: np.array(value) for path, value in flat(params).items()}
    for layer, entries in quiet.items():
        path = f"layers.{layer}." + {"F": "ffn.down", "N": "attention.o"}[axes]
        leaves[path][:, entries] = 0
    return config, nest(leaves)


def test_neurons_with_the_largest_activation_stay(teacher: Path, tmp_path: Path) -> None:
    """The student is the teacher in which the other neurons say nothing."""
    _, neurons = norms(teacher)
    quiet = {layer: np.argsort(-values)[10:].tolist() for layer, values in enumerate(neurons)}
    config, params = derived(teacher, tmp_path / "params", intermediate=10)
    assert config.ffn == 10
    assert params["layers"]["0"]["ffn"]["down"].shape == (32, 10)
    wanted = logits(*silenced(teacher, tmp_path, "F", quiet))
    np.testing.assert_allclose(logits(config, params), wanted, atol=1e-5)
    assert np.abs(wanted - logits(*load_weights(teacher))).max() > 1e-3


@pytest.mark.parametrize(("count", "kv"), [(4, 1), (6, 2)])
def test_heads_go_by_whole_groups_or_evenly_from_each(teacher: Path, tmp_path: Path, count: int, kv: int) -> None:
    heads, _ = norms(teacher)
    quiet = {}
    for layer, values in enumerate(heads):
        groups = values.reshape(KV, -1)
        if kv == 1:
            gone = int(groups.sum(axis=1).argmin())
            quiet[layer] = list(range(gone * 4, gone * 4 + 4))
        else:
            quiet[layer] = [g * 4 + int(group.argmin()) for g, group in enumerate(groups)]
    config, params = derived(teacher, tmp_path / "params", heads=count)
    assert (config.heads, config.kv_heads, config.head_dim) == (count, kv, 4)
    shapes = {name: params["layers"]["1"]["attention"][name].shape for name in "qkvo"}
    assert shapes == {"q": (count, 4, 32), "k": (kv, 4, 32), "v": (kv, 4, 32), "o": (32, count, 4)}
    np.testing.assert_allclose(logits(config, params), logits(*silenced(teacher, tmp_path, "N", quiet)), atol=1e-5)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"layers": 6}, "derive.layers is 6, teacher has 5: take fewer"),
        ({"layers": [0, 5]}, "teacher has layers 0 to 4, not 5"),
        ({"heads": 5}, "heads is 5, the teacher's 8 share 2 key/value heads: take a multiple of 4 .* or of 2"),
        ({"heads": 16}, "derive.heads is 16, teacher has 8: take fewer"),
        ({"intermediate": 25}, "derive.intermediate is 25, teacher has 24"),
    ],
)
def test_what_cannot_be_is_refused(teacher: Path, tmp_path: Path, how: dict, complaint: str) -> None:
    with pytest.raises(DistillError, match=complaint):
        derived(teacher, tmp_path / "params", **how)
    assert not (tmp_path / "params").exists()


def recipe(**derive: object) -> dict:
    return {
        "run": "x", "prompts": {"source": "p.jsonl"}, "stages": {"sft": {"init": "student", "steps": 1}},
        "models": {"teacher": {"source": "some/model", "revision": "1"}, "student": {"derive": derive}},
    }  # fmt: skip


def test_a_recipe_says_it() -> None:
    made = load_recipe(recipe(**{"from": "teacher", "layers": 8}))
    assert made.models["student"].source == "8 layers of teacher"
    again = type(made).model_validate_json(made.model_dump_json(exclude_defaults=True))
    assert again.id8("student") == made.id8("student")
    other = recipe(**{"from": "teacher", "layers": 8})
    other["models"]["teacher"]["revision"] = "2"
    assert load_recipe(other).id8("student") != made.id8("student")
    for derive, complaint in (
        ({"from": "techer"}, "models.student.derive.from: techer is not among models .did you mean teacher"),
        ({"from": "student"}, "student → student is a cycle"),
        ({"from": "teacher", "layers": [3, 1]}, "must rise"),
        ({"from": "teacher", "layer": 3}, "layer is not a setting"),
    ):
        with pytest.raises(DistillError, match=complaint):
            load_recipe(recipe(**derive))
