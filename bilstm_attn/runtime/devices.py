"""Device mesh, and the placement of batches and state on it."""

import contextlib
import os
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilstm_attn.errors import UserError

Tree = TypeVar("Tree")


class Part(NamedTuple):
    """The rows of a batch that one process holds: an equal part of each length group."""

    number: int  # index of the part, from 0
    parts: int  # number of parts


ALL_ROWS = Part(0, 1)

AXIS = "data"
MAX_CPU_DEVICES = 8  # with more, each has too few rows; measured on two cores only
SHARDED = PartitionSpec(AXIS)  # the first axis is divided over the devices
REPLICATED = PartitionSpec()  # every device has all of it
SHARDED_AFTER_SEEDS = PartitionSpec(None, AXIS)  # the same after a leading axis of seeds


def make_mesh(rows: int, devices: int | None = None) -> Mesh:
    """Returns a mesh of `devices` devices per process, over which `rows` rows are sharded.

    `devices` None takes all GPUs or TPUs. A CPU is then divided into virtual devices, at most one
    per core, so that the same program runs on a laptop and on a node of GPUs. Must be called
    before any other use of JAX except `distributed.join_processes`.

    Raises:
      UserError: a process has fewer devices, or the devices do not divide the rows.
    """
    if devices is not None and (devices < 1 or rows % devices):
        raise UserError(
            f"--devices must be above 0 and divide {rows}, the rows per length group, "
            f"got {devices}; change it, data.batch_size or data.bucket_edges"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(cores or 1, MAX_CPU_DEVICES)
    # Fails if JAX is in use already, as in a notebook: then its devices are taken as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or _largest_share(rows, cores))
    processes, available = jax.process_count(), jax.local_device_count()
    if devices is None:
        on_cpu = jax.default_backend() == "cpu"
        devices = _largest_share(rows, min(cores, available), processes) if on_cpu else available
    if devices > available:
        raise UserError(
            f"--devices must be at most {available}, the number of {jax.default_backend()} devices "
            f"per process, got {devices}"
        )
    if rows % (devices * processes):
        raise UserError(
            f"the number of devices must divide {rows}, the rows per length group, got "
            f"{devices * processes}; change data.batch_size, or give --devices"
        )
    chosen = [device for process in range(processes) for device in _devices_of(process)[:devices]]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _largest_share(rows: int, limit: int, processes: int = 1) -> int:
    """Returns the largest n ≤ `limit` such that n devices per process divide `rows` evenly."""
    return max(n for n in range(1, limit + 1) if n == 1 or rows % (n * processes) == 0)


def _devices_of(process: int) -> list[Any]:
    return [device for device in jax.devices() if device.process_index == process]


def process_part(mesh: Mesh) -> Part:
    """Returns this process's part of the rows of a batch."""
    return Part(jax.process_index(), len({device.process_index for device in mesh.devices.flat}))


def shard_rows(tree: Tree, mesh: Mesh, spec: PartitionSpec = SHARDED) -> Tree:
    """Places `tree` on the mesh, sharded along its rows; each process passes its own part."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding, may_alias=False)  # a copy, so that it can be donated
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Places all of `tree` on every device of the mesh; each process passes all of it."""
    return shard_rows(tree, mesh, REPLICATED)
