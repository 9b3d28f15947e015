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
ROWS = PartitionSpec(AXIS)  # the first axis is divided over the devices
WHOLE = PartitionSpec()  # every device has all of it


def make_mesh(batch_size: int, devices: int | None = None) -> Mesh:
    """Returns a mesh over `devices` devices; None takes every accelerator, or every CPU core.

    A CPU becomes as many devices as it shares a batch over, so that one program serves a laptop
    and a node of GPUs. Must come before any other use of jax.

    Raises:
      UserError: there are not so many devices, or they do not divide the batch.
    """
    wanted = devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if devices is None:
        devices = max(n for n in range(1, (cores or 1) + 1) if batch_size % n == 0)
    # Where jax is in use already, as in a notebook, its devices are what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
    available = jax.devices()
    if wanted is None:
        devices = min(devices, len(available)) if jax.default_backend() == "cpu" else len(available)
    if devices < 1 or devices > len(available):
        raise UserError(
            f"--devices must be from 1 to {len(available)} on {jax.default_backend()}, "
            f"got {devices}"
        )
    if batch_size % devices:
        raise UserError(
            f"data.batch_size must be a multiple of the {devices} devices, got {batch_size}; "
            "change it or give --devices"
        )
    return jax.make_mesh((devices,), (AXIS,), (AxisType.Auto,), devices=available[:devices])


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Returns the batch on the mesh, its rows divided. Every process gives the whole batch."""
    return jax.device_put(batch, NamedSharding(mesh, ROWS))


def place_whole(tree: Tree, mesh: Mesh) -> Tree:
    """Returns `tree` with every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def batch_shape(batch_size: int, steps: int, mesh: Mesh) -> Batch:
    """Returns the shapes of a batch on the mesh, to compile for."""

    def rows(dtype: type, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, ROWS))

    return Batch(
        tokens=rows(np.int32, batch_size, steps),
        length=rows(np.int32, batch_size),
        label=rows(np.int32, batch_size),
        weight=rows(np.float32, batch_size),
    )
