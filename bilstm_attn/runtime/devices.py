"""The mesh: which devices, of how many processes, share a batch, and where batch and state lie."""

import contextlib
import os
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilstm_attn.errors import UserError
from bilstm_attn.types import Batch

Tree = TypeVar("Tree")


class Part(NamedTuple):
    """One of equal parts of a batch's rows, group by group: those of one process."""

    number: int  # from 0
    parts: int


ALL_ROWS = Part(0, 1)

AXIS = "data"
MOST_CPU_DEVICES = 8  # more would share a batch in crumbs; measured on two cores only
SHARDED = PartitionSpec(AXIS)  # the first axis is divided over the devices
REPLICATED = PartitionSpec()  # every device has all of it


def make_mesh(rows: int, devices: int | None = None) -> Mesh:
    """Returns a mesh of `devices` devices of each process to share `rows` rows; None takes all.

    A CPU becomes as many devices as it shares a batch over, so that one program serves a laptop
    and a node of GPUs. Must come before any other use of jax, but for `cluster.join`.

    Raises:
      UserError: there are not so many devices, or they do not divide the batch.
    """
    if devices is not None and (devices < 1 or rows % devices):
        raise UserError(
            f"--devices must be above 0 and divide each group of {rows} reviews (data.batch_size "
            f"by the groups of data.bucket_edges), got {devices}"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(cores or 1, MOST_CPU_DEVICES)
    # Where jax is in use already, as in a notebook, its devices are what there is.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or _greatest_share(rows, cores))
    processes, there = jax.process_count(), jax.local_device_count()
    if devices is None:
        on_cpu = jax.default_backend() == "cpu"
        devices = _greatest_share(rows, min(cores, there), processes) if on_cpu else there
    if devices > there:
        raise UserError(
            f"--devices must be at most the {there} of {jax.default_backend()}, got {devices}"
        )
    if rows % (devices * processes):
        raise UserError(
            f"the {devices * processes} devices must divide each group of {rows} reviews; change "
            "data.batch_size, or give --devices"
        )
    chosen = [device for process in range(processes) for device in _devices_of(process)[:devices]]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _greatest_share(rows: int, most: int, processes: int = 1) -> int:
    """Returns the most devices a process, up to `most`, that divide the rows."""
    return max(n for n in range(1, most + 1) if n == 1 or rows % (n * processes) == 0)


def _devices_of(process: int) -> list[Any]:
    return [device for device in jax.devices() if device.process_index == process]


def process_part(mesh: Mesh) -> Part:
    """Returns which rows of a batch this process's devices of the mesh take."""
    return Part(jax.process_index(), len({device.process_index for device in mesh.devices.flat}))


def shard_rows(tree: Tree, mesh: Mesh, spec: PartitionSpec = SHARDED) -> Tree:
    """Returns `tree` on the mesh, rows divided over it; each process gives its own part."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding, may_alias=False)  # so that it can be donated
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Returns `tree` with every array on every device of the mesh; each process gives all of it."""
    return shard_rows(tree, mesh, REPLICATED)


def rows_spec(seeds: int = 1) -> PartitionSpec:
    """Returns how rows are divided: the first axis, or the second where seeds are the first."""
    return SHARDED if seeds == 1 else PartitionSpec(None, AXIS)


def rows_shape(reviews: int, steps: int, mesh: Mesh, seeds: int = 1) -> Batch:
    """Returns the shapes of so many reviews of each seed on the mesh, to compile for."""
    sharding = NamedSharding(mesh, rows_spec(seeds))

    def rows(dtype: type, *shape: int) -> Any:
        shape = shape if seeds == 1 else (seeds, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return Batch(
        tokens=rows(np.int32, reviews, steps),
        length=rows(np.int32, reviews),
        label=rows(np.int32, reviews),
        weight=rows(np.float32, reviews),
    )
