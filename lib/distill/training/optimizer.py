"""The optimiser of a stage: one by name, behind a clip of the global gradient norm."""

from typing import Any

import jax
import optax

from distill.config.stages import Stage


def learning_rate(stage: Stage, steps: int) -> optax.Schedule:
    """Linear warm-up from zero, then the stage's schedule down to `final_learning_rate` at the last step."""
    after = max(1, steps - stage.warmup_steps)
    peak, final = stage.learning_rate, stage.final_learning_rate
    fall = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, alpha=final / peak),
    }[stage.schedule]()
    warm = optax.linear_schedule(0.0, peak, stage.warmup_steps)
    return optax.join_schedules([warm, fall], [stage.warmup_steps]) if stage.warmup_steps else fall


def make_optimizer(stage: Stage, steps: int) -> optax.GradientTransformation:
    """Weight decay, times the learning rate, acts on matrices: not on norms, not on biases."""
    rate = learning_rate(stage, steps)
    decay = {"weight_decay": stage.weight_decay, "mask": _decayed}
    rule = {
        "adamw": lambda: optax.adamw(rate, b1=stage.beta1, b2=stage.beta2, **decay),
        "lion": lambda: optax.lion(rate, b1=stage.beta1, b2=stage.beta2, **decay),
        "adafactor": lambda: _adafactor(rate, stage.weight_decay),
    }[stage.optimizer]()
    return optax.chain(optax.clip_by_global_norm(stage.clip_norm), rule)


def _adafactor(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) without momentum; a step is `learning_rate`, not a share of the weights' size."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(weight_decay, mask=_decayed),
        optax.scale_by_learning_rate(rate),
    )


def _decayed(params: Any) -> Any:
    def is_matrix(path: tuple, _: Any) -> bool:
        names = "/".join(str(part.key) for part in path)
        return not ("norm" in names or names.endswith("bias"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)
