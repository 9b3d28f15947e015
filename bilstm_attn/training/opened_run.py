"""A finished run, ready for use: its exported model on devices and a backend."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from bilstm_attn.config import BackendChoice
from bilstm_attn.inference.exported import Exported, load_model
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.training.run_dir import RunDir


class OpenedRun(NamedTuple):
    """A run folder, its exported model, and the model's equations on a mesh."""

    run_dir: RunDir
    exported: Exported
    model: Model
    mesh: Mesh


def model_file(path: Path) -> Path:
    """Returns the exported model of a run folder, or the path itself if it is a file.

    Raises:
      UserError: the folder is no run, or no epoch has ended yet.
    """
    return path if path.is_file() else RunDir(path).exported()


def open_model(exported: Exported, backend: BackendChoice, console: Console) -> Model:
    """Returns the equations of an exported model, with the backend chosen.

    Raises:
      UserError: the backend is not available here.
    """
    enable_compile_cache(console.print)
    chosen = choose_backend(backend, exported.config, console.print)
    return Model(exported.config.model, exported.vocabulary.size, chosen)


def open_run(
    path: Path, backend: BackendChoice, devices: int | None, console: Console, rows: int = 0
) -> OpenedRun:
    """Returns the run in a folder, or of an exported file.

    Args:
      path: a run folder or an exported model.
      backend: the recurrence's backend.
      devices: number of devices; None is every accelerator, or up to 8 CPU cores.
      console: prints what was chosen.
      rows: the rows that devices share; 0 is the group size of the config.

    Raises:
      UserError: not a run, or the devices do not divide the rows.
    """
    exported = load_model(model_file(path))
    mesh = make_mesh(rows or exported.config.data.group_size, devices)
    folder = path.parent if path.is_file() else path
    return OpenedRun(RunDir(folder), exported, open_model(exported, backend, console), mesh)
