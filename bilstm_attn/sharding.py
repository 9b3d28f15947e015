"""The mesh: which devices share a batch, and where batch and state lie."""

import contextlib
import os
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilstm_attn.errors import UserError
from bilstm_attn.types import Batch

Tree = TypeVar("Tree")

AXIS = "data"
MOST_CPU_DEVICES = 8  # more would share a batch in crumbs; measured on two cores only
ROWS = PartitionSpec(AXIS)  # the first axis is divided over the devices
WHOLE = PartitionSpec()  # every device has all of it


def make_mesh(rows: int, devices: int | None = None) -> Mesh:
    """Returns a mesh of `devices` devices to share `rows` rows; None takes all there are.

    A CPU becomes as many devices as it shares a batch over, so that one program serves a laptop
    and a node of GPUs. Must come before any other use of jax.

    Raises:
      UserError: there are not so many devices, or they do not divide the batch.
    """
    if devices is not None and (devices < 1 or rows % devices):
        raise UserError(
            f"--devices must be above 0 and divide each group of {rows} reviews (data.batch_size "
            f"by the groups of data.bucket_edges), got {devices}"
        )
    wanted = devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if devices is None:
        devices = max(n for n in range(1, min(cores or 1, MOST_CPU_DEVICES) + 1) if rows % n == 0)
    # Where jax is in use already, as in a notebook, its devices are what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
    available = jax.devices()
    if wanted is None:
        devices = min(devices, len(available)) if jax.default_backend() == "cpu" else len(available)
    if devices > len(available):
        raise UserError(
            f"--devices must be at most the {len(available)} of {jax.default_backend()}, "
            f"got {devices}"
        )
    if rows % devices:
        raise UserError(
            f"the {devices} devices must divide each group of {rows} reviews; change "
            "data.batch_size, or give --devices"
        )
    return jax.make_mesh((devices,), (AXIS,), (AxisType.Auto,), devices=available[:devices])


def place_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Returns `tree` on the mesh, rows divided over it. Every process gives all of them."""
    return jax.device_put(tree, NamedSharding(mesh, ROWS))


def place_whole(tree: Tree, mesh: Mesh) -> Tree:
    """Returns `tree` with every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def rows_shape(reviews: int, steps: int, mesh: Mesh) -> Batch:
    """Returns the shapes of so many reviews on the mesh, to compile for."""

    def rows(dtype: type, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, ROWS))

    return Batch(
        tokens=rows(np.int32, reviews, steps),
        length=rows(np.int32, reviews),
        label=rows(np.int32, reviews),
        weight=rows(np.float32, reviews),
    )
