"""Checkpoints by orbax, with digests of their own.

Orbax restores damaged bytes without an error, so every file and the whole state have a digest that
is verified.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.distributed import (
    broadcast,
    is_main_process,
    on_main_process,
    require_same,
)
from bilstm_attn.runtime.files import (
    file_sha256,
    report_write_errors,
    tree_sha256,
    write_atomically,
)

DIGESTS = "sha256.json"  # in the folder of a checkpoint: the digest of every other file
SPARE_BYTES = 1 << 18  # of a checkpoint beyond its arrays
ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
)
CHECKPOINTS = 2  # the newest, and one to fall back to if it is damaged


def _digest_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `folder` except `DIGESTS`, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): file_sha256(path)
        for path in paths
        if path != folder / DIGESTS
    }


def _require_whole(folder: Path) -> None:
    """Raises a `ValueError` if a file of a checkpoint differs from what was saved.

    Orbax cannot do this: on damaged files it prints tracebacks or reads wrong values. A checkpoint
    without digests was interrupted at the very end of saving; then the digest of its state decides.
    """
    if not (folder / DIGESTS).exists():
        return
    saved, found = json.loads((folder / DIGESTS).read_bytes()), _digest_files(folder)
    for name in sorted({*saved, *found}):
        if saved.get(name) != found.get(name):
            raise ValueError(f"its file {name} differs from the saved one")


def _require_space(folder: Path, state: Any) -> None:
    """Raises an `OSError` unless there is space for a checkpoint of `state` below `folder`.

    Orbax must not find out by itself: on a full disk its threads print dozens of tracebacks.
    """
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    chunk = bytes(1 << 16)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(0, size + size // 8 + SPARE_BYTES, len(chunk)):
            file.write(chunk)


class Checkpoints:
    """The checkpoints of a run, by step; a context manager.

    States are trees of NumPy arrays, so a checkpoint can be read on another number of devices and
    processes. Every process calls every method; the main process reads and writes.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> "Checkpoints":
        """Opens the folder, which need not exist."""
        on_main_process(self._open)
        return self

    def _open(self) -> None:
        with report_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Left by a killed save. Orbax would try to delete them too, but ignore a failure.
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    create=False,  # orbax refuses True where one process of several writes
                    preservation_policy=LatestN(CHECKPOINTS),
                    enable_async_checkpointing=False,
                    multiprocessing_options=ALONE,
                ),
            )

    def __exit__(self, *error: object) -> None:
        """Closes the folder."""
        if self._manager is not None:
            self._manager.close()

    @property
    def _opened(self) -> ocp.CheckpointManager:
        assert self._manager is not None, "use `with Checkpoints(folder) as checkpoints`"
        return self._manager

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        return on_main_process(lambda: sorted(self._opened.all_steps()))

    def rewind(self, step: int) -> None:
        """Deletes the checkpoints of later steps, damaged or not; they will be saved again.

        Raises:
          UserError: one cannot be deleted.
        """

        def delete() -> None:
            for later in self._opened.all_steps():
                if later > step:
                    with report_write_errors(self.folder / str(later)):
                        self._opened.delete(later)

        on_main_process(delete)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Saves `state`, a tree of arrays, and `record`, plain JSON, as the checkpoint of `step`.

        Raises:
          UserError: it cannot be written, and earlier checkpoints are intact; or the processes
            have different states.
        """
        state = jax.device_get(state)
        state_sha256 = tree_sha256(state)
        require_same(**{f"the state at step {step}": state_sha256})
        about = {"state_sha256": state_sha256, "record": record}
        on_main_process(lambda: self._save(step, state, about))

    def _save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        if step in self._opened.all_steps():
            return
        with report_write_errors(self.folder / str(step)):
            _require_space(self.folder, state)
            self._opened.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(about)
                ),
            )
            self._opened.wait_until_finished()
            digests = json.dumps(_digest_files(self.folder / str(step)), indent=2)
        write_atomically(self.folder / str(step) / DIGESTS, digests.encode())

    def restore(
        self,
        like: Any,
        notify: Callable[[str], object],
        accept: Callable[[dict[str, Any]], None] = lambda record: None,
        at_most: int | None = None,
    ) -> tuple[Any, dict[str, Any]] | None:
        """Returns state and record of the newest intact checkpoint, or None if there is none.

        Args:
          like: a state of the same structure.
          notify: called with a line about each checkpoint that is damaged and passed over.
          accept: called with the record before the state is read; raises to refuse it.
          at_most: the latest step to consider.

        Raises:
          UserError: there are checkpoints, and every one is damaged; or `accept` did.
        """
        like = jax.device_get(like)
        found: list[Any] = []

        def restore() -> dict[str, Any] | None:
            found.append(self._restore(like, notify, accept, at_most))
            return None if found[0] is None else found[0][1]

        record = on_main_process(restore)
        if record is None:
            return None
        return broadcast(found[0][0] if is_main_process() else like), record

    def _restore(
        self,
        like: Any,
        notify: Callable[[str], object],
        accept: Callable[[dict[str, Any]], None],
        at_most: int | None,
    ) -> tuple[Any, dict[str, Any]] | None:
        steps = sorted(self._opened.all_steps(), reverse=True)
        chosen = [step for step in steps if at_most is None or step <= at_most]
        for step in chosen:
            try:
                _require_whole(self.folder / str(step))
                record = ocp.args.JsonRestore()
                about = self._opened.restore(step, args=ocp.args.Composite(record=record))["record"]
                accept(about["record"])
                given = ocp.args.Composite(state=ocp.args.StandardRestore(like))
                state = self._opened.restore(step, args=given)["state"]
                if tree_sha256(state) != about["state_sha256"]:
                    raise ValueError("its digest differs")
            except UserError:
                raise
            except Exception as error:  # orbax raises errors of many types on damaged files
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                notify(f"checkpoint {step} is damaged ({reason[:120]}); trying the one before")
                continue
            return state, about["record"]
        if chosen:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged; start again with another --name"
            )
        return None
