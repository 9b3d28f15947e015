"""A run folder: its files, its metrics, and the record of how it was made."""

import contextlib
import importlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bilstm_attn.config import Config, differences
from bilstm_attn.config_files import from_json
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.distributed import is_main_process
from bilstm_attn.runtime.files import (
    decode_utf8,
    json_sha256,
    report_write_errors,
    write_atomically,
)


class RunDir:
    """Paths and records below one folder, `runs/<recipe>/seed<k>`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logged: list[dict[str, Any]] = []  # every record since the run began
        self._tensorboard_writer: Any = None  # its class, if files are wanted
        self._tensorboard: Any = None

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.folder / "config.json"

    @property
    def environment_file(self) -> Path:
        """Versions, devices and digests, recorded at every start of the run."""
        return self.folder / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """JSON lines: one per log interval and epoch, and one for test at the end."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.folder / "model.safetensors"

    @property
    def curves(self) -> Path:
        """The figure of loss and accuracy."""
        return self.folder / "curves.png"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard files."""
        return self.folder / "tensorboard"

    def predictions(self, split: str) -> Path:
        """The predictions for a split, one JSON line per example."""
        return self.folder / f"predictions.{split}.jsonl"

    def config(self) -> Config:
        """Returns the config of an existing run.

        Raises:
          UserError: the folder is not a run, or one of another version.
        """
        try:
            data = self.config_file.read_bytes()
        except OSError:
            raise UserError(
                f"{self.folder} is not a run's folder: it has no config.json; give a folder "
                "such as runs/NAME/seedN"
            ) from None
        return from_json(decode_utf8(data, str(self.config_file)), str(self.config_file))

    def exported(self) -> Path:
        """Returns the exported model's path.

        Raises:
          UserError: no epoch has ended yet, or the folder is not a run.
        """
        if not self.model.is_file():
            self.config()
            raise UserError(
                f"{self.folder} has no model.safetensors yet: no epoch has ended; continue the run "
                "with --resume"
            )
        return self.model

    def check(self, config: Config, *, resume: bool) -> None:
        """Checks that a config may be trained in this folder, before any work.

        Raises:
          UserError: the folder has a run and `resume` is false, or a run of another config; or
            there is nothing to resume.
        """
        if not self.config_file.exists():
            if resume:
                raise UserError(f"{self.folder} holds no run to resume; leave out --resume")
            return
        differing = differences(self.config(), config)
        if differing:
            raise UserError(
                f"{self.folder} holds a run of another config ({'; '.join(differing[:3])}); give "
                "this one another --name"
            )
        if not resume:
            raise UserError(
                f"{self.folder} holds this run already; continue it with --resume, or give --name "
                "or --seed for another"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and locks it; the lock ends with the process, however that ends.

        Raises:
          UserError: another process has locked it, or the folder cannot be made.
        """
        with contextlib.ExitStack() as stack:
            with report_write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.folder / "lock").open("a"))
            try:
                import fcntl  # not on Windows

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is training in {self.folder}; wait for it, or give --name "
                    "or --seed for another run"
                ) from None
            except (ImportError, OSError):  # a system or a file system without locks
                pass
            yield

    def start(self, config: Config, environment: dict[str, Any]) -> None:
        """Writes the config, and adds `environment` to those of earlier starts.

        Raises:
          UserError: an earlier start had other data or another source of initial values.
        """
        earlier = self.environments()
        if earlier and earlier[-1].get("data_sha256") != environment.get("data_sha256"):
            raise UserError(
                f"{self.folder} was begun on other data; give the --cache it had, or another --name"
            )
        recorded = earlier[-1].get("init_from_sha256") if earlier else None
        if earlier and recorded != environment.get("init_from_sha256"):
            raise UserError(
                f"{self.folder} was initialised from another file; restore that file, or give "
                "another --name"
            )
        self.write_environments([*earlier, environment])
        write_atomically(self.config_file, config.to_json().encode())

    def write_environments(self, environments: list[dict[str, Any]]) -> None:
        """Writes the environments that `environments` reads.

        Raises:
          UserError: the file cannot be written; the earlier one is unchanged.
        """
        about = {"starts": environments, "sha256": json_sha256(environments)}
        write_atomically(self.environment_file, json.dumps(about, indent=2).encode())

    def open_tensorboard(self) -> None:
        """Also writes later log lines to TensorBoard files, from the next `rewind` on.

        Raises:
          UserError: tensorboardX is not installed.
        """
        try:
            self._tensorboard_writer = _tensorboardx("event_file_writer").EventsWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs tensorboardX; install it with pip install -e '.[tensorboard]'"
            ) from None

    def log(self, record: dict[str, Any]) -> None:
        """Appends a JSON line to the metrics, and its numbers to TensorBoard files if open.

        Only the main process writes.
        """
        self.logged.append(record)
        if not is_main_process():
            return
        with report_write_errors(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(_line(record))
        if self._tensorboard is not None:
            protos = _tensorboardx("proto.summary_pb2")
            values = [
                protos.Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
                for name, value in record.items()
                if isinstance(value, float)
            ]
            self._write_event(step=record["step"], summary=protos.Summary(value=values))

    def _write_event(self, **fields: Any) -> None:
        # In this thread: that of tensorboardX hangs on a full disk.
        with report_write_errors(self.tensorboard):
            self._tensorboard.write_event(
                _tensorboardx("proto.event_pb2").Event(wall_time=time.time(), **fields)
            )
            self._tensorboard.flush()

    def environments(self) -> list[dict[str, Any]]:
        """Returns the environment of every start.

        Raises:
          UserError: the file is damaged.
        """
        if not self.environment_file.exists():
            return []
        try:
            about = json.loads(self.environment_file.read_bytes())
            if about["sha256"] != json_sha256(about["starts"]):
                raise ValueError("its digest differs")
            return about["starts"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.environment_file} is damaged ({error}); delete it, and with it the record "
                "of versions and devices"
            ) from None

    def environment(self, before_step: int | None = None) -> dict[str, Any]:
        """Returns the environment of the last start, or of the last start before a step.

        Raises:
          UserError: there is no such record, or it is damaged.
        """
        starts = self.environments()
        if before_step is not None:
            starts = [start for start in starts if start.get("from_step", 0) < before_step]
        if not starts:
            raise UserError(
                f"{self.folder} has no record of the versions, devices and files it had "
                f"({self.environment_file.name}); give another run"
            )
        return starts[-1]

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of the metrics file, except an incomplete last line.

        Raises:
          UserError: another line is damaged.
        """
        if not self.metrics_file.exists():
            return []
        records = []
        for number, line in enumerate(self.metrics_file.read_bytes().split(b"\n")[:-1], start=1):
            try:
                records.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"line {number} of {self.metrics_file} is damaged ({error}); delete that line"
                ) from None
        return records

    def rewind(self, step: int, logged: Sequence[dict[str, Any]]) -> None:
        """Resets the metrics to the records `logged` up to `step`; later steps will run again.

        A result on test is kept if it is the only later record, since test is measured once.
        """
        self.logged = list(logged)
        with contextlib.suppress(UserError):  # a damaged file: measuring again gives the same
            written = self.records()
            later = written[len(logged) :] if written[: len(logged)] == self.logged else []
            if {record.get("kind") for record in later} <= {"final"}:
                self.logged += later
        if not is_main_process():
            return
        if environments := self.environments():
            environments[-1]["from_step"] = step
            self.write_environments(environments)
        write_atomically(self.metrics_file, "".join(map(_line, self.logged)).encode())
        if self._tensorboard_writer is not None:
            log = _tensorboardx("proto.event_pb2").SessionLog
            with report_write_errors(self.tensorboard):
                self.tensorboard.mkdir(exist_ok=True)
                prefix = str(self.tensorboard / "events")
                self._tensorboard = self._tensorboard_writer(prefix, f".from{step}")
            # TensorBoard drops its earlier values of these steps.
            self._write_event(step=step + 1, session_log=log(status=log.START))

    def close(self) -> None:
        """Closes the TensorBoard files; without it nothing is lost."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _tensorboardx(module: str) -> Any:
    return importlib.import_module(f"tensorboardX.{module}")
