"""The closed form of memory against the compiler's, and the shapes against those of a run."""

from pathlib import Path
from typing import Any

import jax
import pytest
from golden_models import QUICKLY, load
from tiny_models import tiny_config, tiny_llama

from distill.checkpoints.convert import import_checkpoint
from distill.checkpoints.store import load_weights
from distill.config.generation import ONE_DEVICE, Generation
from distill.config.stages import Stage
from distill.generation.engine import Engine
from distill.models.families import config_from_hf
from distill.models.int8 import quantize_weights
from distill.parallel.mesh import make_mesh
from distill.planning.programs import compiled, decode_program, device_bytes, simulated, train_program
from distill.training.optimizer import make_optimizer
from distill.training.state import initial_state

SPARE = 512
"""Bytes of scalars, and of what the compiler aligns."""
LLAMA = config_from_hf(tiny_config())


def stage(**changes: Any) -> Stage:
    return Stage(**{"init": "student", "steps": 4, "batch_size": 4} | changes)


@pytest.mark.parametrize("more", [{}, {"optimizer": "lion", "micro_batch_size": 2, "lora": {"rank": 2}}])
def test_the_train_step_is_given_what_the_closed_form_has(more: dict[str, Any]) -> None:
    program = train_program(LLAMA, stage(mesh={"fsdp": 2, "tensor": 2}, **more), "bfloat16", 24, simulated(4))
    found, held = compiled(program.lower(), QUICKLY), program.held
    assert abs(found.arguments - held["parameters"] - held["optimizer"] - held["batch"]) < SPARE
    assert found.temporary > held["gradients"]
    assert found.peak < found.arguments + found.temporary + SPARE  # the old state's memory is given to the new one


def test_a_teacher_and_stored_logits_are_in_the_train_step() -> None:
    asked = {"objective": "logits", "mesh": {"fsdp": 2, "tensor": 2}}
    online = train_program(LLAMA, stage(**asked), "float32", 24, simulated(4), (LLAMA, "bfloat16"))
    found, held = compiled(online.lower(), QUICKLY), online.held
    assert held["teacher"] == held["parameters"] // 2
    assert abs(found.arguments - held["parameters"] - held["teacher"] - held["optimizer"] - held["batch"]) < SPARE
    stored = train_program(LLAMA, stage(objective="topk_logits", k=4), "float32", 24, simulated(4))
    assert stored.held["batch"] == (4 * 24 * (20 + 4 * (2 + 2)) + 4 * 4) // 4
    stored.lower()
    wider = config_from_hf(tiny_config(vocab_size=60))
    asked["objective"] = "aligned_logits"
    aligned = train_program(LLAMA, stage(**asked), "float32", 24, simulated(4), (wider, "bfloat16"))
    assert aligned.held["batch"] == 4 * 24 * (20 + 9 * 4) // 2
    aligned.lower()


@pytest.mark.parametrize("int8", [(), ("weights", "cache")])
def test_the_decode_step_is_given_what_the_closed_form_has(int8: tuple[str, ...]) -> None:
    """Latent attention, and experts among two devices."""
    settings = Generation(max_prefill_length=16, max_target_length=56, slots=4, int8=int8, mesh={"expert": 2})
    config = load("deepseek_v2")[0]
    program = decode_program(config, settings, "float32", simulated(4))
    assert abs(compiled(program.lower(), QUICKLY).arguments - sum(program.held.values())) < SPARE
    if not int8:
        alone = decode_program(config, settings.model_copy(update={"mesh": ONE_DEVICE}), "float32", simulated(1))
        assert 0.5 * alone.held["parameters"] < program.held["parameters"] < alone.held["parameters"]


def test_the_shapes_are_those_of_a_run(tmp_path: Path) -> None:
    """Every byte that training starts with and an engine holds, on each device."""
    import_checkpoint(tiny_llama(tmp_path / "hf"), tmp_path / "params", dtype="bfloat16", origin="here")
    mesh, wanted = make_mesh({"fsdp": 2}, jax.devices()[:2]), stage(mesh={"fsdp": 2}, batch_size=2)
    config, state, _, _ = initial_state(tmp_path / "params", wanted, make_optimizer(wanted, 4), mesh)
    held = train_program(config, wanted, "bfloat16", 16, simulated(2)).held
    assert (held["parameters"], held["optimizer"]) == (device_bytes(state.params), device_bytes(state.optimizer))
    settings = Generation(max_prefill_length=8, max_target_length=56, slots=2, int8=["weights", "cache"])
    config, params = load_weights(tmp_path / "params")
    engine = Engine(config, quantize_weights(params), slots=2, max_length=56, real_vocab=35, int8_cache=True)
    lane = engine.lanes[0]
    assert engine.setup.room == lane.attended  # the caches start at their full size
    assert decode_program(config, settings, "bfloat16", simulated(1)).held == {
        "parameters": device_bytes(engine.params), "cache": device_bytes(lane.caches),
    }  # fmt: skip
