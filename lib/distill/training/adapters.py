"""The adapters of a stage: which weights have one, where they lie, and their end in the weights."""

import jax
from jax.sharding import Mesh

from distill.checkpoints.store import flat, nest
from distill.config.settings import did_you_mean
from distill.config.training import Lora
from distill.errors import DistillError
from distill.models import decoder, lora
from distill.models.config import ModelConfig
from distill.parallel.mesh import weight_sharding


def adapted(config: ModelConfig, settings: Lora) -> dict[str, tuple[str, int]]:
    """Axes and number of layers of each weight that has an adapter, by its dotted path in the scanned tree.

    Only matrices of a layer's attention and feed-forward can have one: not the router, norms, embedding or head.
    """
    axes, found = decoder.weight_axes(config), {}
    for stack, (start, stop) in enumerate(config.stacks):
        prefix = f"layers.{start}."
        for path, names in axes.items():
            if path.startswith(prefix) and len(names.split()) > 1 and not path.endswith(("bias", ".router")):
                found[f"stacks.{stack}.{path.removeprefix(prefix)}"] = names, stop - start
    known = sorted({path.rsplit(".", 1)[1] for path in found})
    for target in settings.targets or ():
        if target not in known:
            raise DistillError(
                f"lora.targets: no layer has a matrix {target}{did_you_mean(target, known)}: name some of "
                f"{', '.join(known)}, or leave targets out for all"
            )
    wanted = settings.targets or known
    return {path: value for path, value in found.items() if path.rsplit(".", 1)[1] in wanted}


def make_adapters(config: ModelConfig, settings: Lora, seed: int) -> decoder.Params:
    """Adapters that change nothing yet: A at random, B zero; float32."""
    sizes, chosen = config.sizes | {"r": settings.rank}, adapted(config, settings)
    keys = jax.random.split(jax.random.key(seed % 2**32), len(chosen))
    return nest({path: lora.start(key, sizes, *value) for key, (path, value) in zip(keys, chosen.items(), strict=True)})


def adapter_shardings(config: ModelConfig, settings: Lora, mesh: Mesh) -> decoder.Params:
    """The sharding of A and B: as their weight's, the rank whole."""
    shapes = flat(jax.eval_shape(lambda: make_adapters(config, settings, 0)))
    axes = {path: lora.adapter_axes(names) for path, (names, _) in adapted(config, settings).items()}

    def names(path: str) -> str:
        weight, side = path.rsplit(".", 1)
        return axes[weight][side]

    return nest({path: weight_sharding(mesh, names(path), leaf.shape) for path, leaf in shapes.items()})


def merge(weights: decoder.Params, adapters: decoder.Params, scale: float) -> decoder.Params:
    """Scanned weights with the adapters in them, each in its own type."""

    def stack(weights: decoder.Params, changes: decoder.Params) -> decoder.Params:
        after = jax.vmap(lambda w, a: lora.merged(w, a, scale))(weights, changes)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), after, weights)

    stacks = {name: stack(weights["stacks"][name], changes) for name, changes in adapters["stacks"].items()}
    return {**weights, "stacks": weights["stacks"] | stacks}
