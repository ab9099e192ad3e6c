"""The device mesh, and where the named axes of weights and batches lie on it.

Mesh axes: `data` and `fsdp` split the batch, `fsdp` the weights as well (gathered when used), `tensor` heads,
hidden widths and the vocabulary, `expert` the experts.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill.errors import DistillError

MESH_AXES = ("data", "fsdp", "expert", "tensor")
WEIGHT_RULES = {
    "D": "fsdp", "Q": "fsdp", "R": "fsdp",
    "V": "tensor", "N": "tensor", "K": "tensor", "F": "tensor", "X": "tensor", "Y": "tensor",
    "E": "expert",
}  # fmt: skip
BATCH_AXES = ("data", "fsdp")


def make_mesh(shape: Mapping[str, int] | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices; one axis may be -1, which fills it. By default all devices are `fsdp`."""
    devices = jax.devices() if devices is None else devices
    shape = {"data": 1, "fsdp": -1, "expert": 1, "tensor": 1} if shape is None else {
        axis: shape.get(axis, 1) for axis in MESH_AXES
    }  # fmt: skip
    known = math.prod(size for size in shape.values() if size != -1)
    open_axes = [axis for axis, size in shape.items() if size == -1]
    if len(open_axes) > 1 or len(devices) % known or (not open_axes and known != len(devices)):
        text = " × ".join(f"{axis} {size}" for axis, size in shape.items())
        raise DistillError(
            f"mesh {text} does not fit {len(devices)} devices: the product must be {len(devices)}, and one axis may "
            "be -1 to take what is left"
        )
    sizes = [len(devices) // known if size == -1 else size for size in shape.values()]
    return Mesh(np.asarray(devices).reshape(sizes), tuple(shape), axis_types=(AxisType.Auto,) * len(sizes))


def engine_mesh(shape: Mapping[str, int]) -> Mesh | None:
    """The first devices, as many as an engine is spread over; None for one alone."""
    count = math.prod(shape.values())
    if count > (there := len(jax.devices())):
        text = " × ".join(f"{axis} {size}" for axis, size in shape.items())
        raise DistillError(f"mesh {text} needs {count} devices, there are {there}: make it smaller")
    return make_mesh(shape, jax.devices()[:count]) if count > 1 else None


def weight_spec(mesh: Mesh, axes: str, shape: tuple[int, ...]) -> PartitionSpec:
    """Which mesh axis each axis of a weight is split over.

    An axis that its mesh axis does not divide stays whole, and so does a leading L.
    """
    names = axes.split()
    spec: list[str | None] = [None] * (len(shape) - len(names))
    for name, size in zip(names, shape[len(spec) :], strict=True):
        rule = WEIGHT_RULES.get(name)
        usable = rule is not None and rule not in spec and size % mesh.shape[rule] == 0
        spec.append(rule if usable else None)
    return PartitionSpec(*spec)


def weight_sharding(mesh: Mesh, axes: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where a weight lies."""
    return NamedSharding(mesh, weight_spec(mesh, axes, shape))


def batch_spec(mesh: Mesh, rows: int) -> PartitionSpec:
    """What the rows of a batch are split over: all of `BATCH_AXES`, or nothing where they do not divide."""
    fits = rows % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0
    return PartitionSpec(BATCH_AXES if fits else None)


def check_rows(mesh: Mesh, rows: int, what: str) -> None:
    """An error where a batch of `rows` cannot be split over the mesh; `what` names the setting."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows % parts:
        raise DistillError(
            f"{what} {rows} cannot be split over {parts} devices: take a multiple of {parts}, "
            "or a mesh with less of data and fsdp"
        )


def cache_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where a cache [B, K, S, H] of keys or values lies, or one [B, S, R] of latents: rows as a batch's, heads as
    the weights that make them."""
    heads = len(shape) == 4 and shape[1] % mesh.shape["tensor"] == 0
    spec = [*(batch_spec(mesh, shape[0]) or (None,)), *([None] * (len(shape) - 1))]
    spec[1] = "tensor" if heads else None
    return NamedSharding(mesh, PartitionSpec(*spec))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
