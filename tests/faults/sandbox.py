"""A folder in which tiny runs are trained and damaged, and an undisturbed run to compare with."""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tiny_run
from forked import TIMEOUT_SECONDS, ForkedProcess, ProcessResult

from bilstm_attn.training.run_dir import RunDir

EPOCHS = 6  # of 6 steps each
TIMES = {"seconds", "measure_seconds", "examples_per_second"}


class FaultResult(NamedTuple):
    """The result of one injected fault; `problem` is empty if the run survived."""

    kind: str
    problem: str

    @property
    def survived(self) -> bool:
        """Whether the run survived."""
        return not self.problem


def fault_result(kind: str, detail: str, problem: str) -> FaultResult:
    """Returns the result of one fault, after printing the problem if there is one."""
    if problem:
        print(f"LOST: {kind}: {detail}: {problem}", file=sys.stderr, flush=True)
    return FaultResult(kind, problem)


class RunResults(NamedTuple):
    """Everything that must be the same for two runs of one recipe."""

    metrics: list[dict[str, Any]]
    last_step: str
    state: str
    model: bytes
    predictions: bytes


class Sandbox:
    """Prepared data, an undisturbed reference run, and folders for runs to damage."""

    def __init__(self, folder: Path, seed: int, data_dir: Path):
        self.folder, self.random, self.data_dir = folder, random.Random(seed), data_dir
        self._write_count = folder / "writes"
        os.environ["XDG_CACHE_HOME"] = str(folder / "xdg")
        self.cache = tiny_run.write_cache(folder / "cache").parent
        self.train(self.new_folder())  # fills the compilation cache before the reference is timed
        self.reference = self.new_folder()
        self.reference_process = self.train(self.reference)
        results = self.results(self.reference)
        assert results is not None, self.reference_process.output
        self.expected = results

    def new_folder(self) -> Path:
        """Returns a new folder that holds the prepared data and no run."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "cache").symlink_to(self.cache)
        return folder

    def run_of(self, folder: Path) -> RunDir:
        """Returns the run below `folder`."""
        return tiny_run.tiny_run(folder)

    def training(self, folder: Path) -> Callable[[], int]:
        """Returns a function that trains the run below `folder`, or resumes it if it exists."""
        flags = ["--resume"] if self.run_of(folder).config_file.exists() else []
        return lambda: tiny_run.train(folder, "--name", "tiny", *flags, train__epochs=EPOCHS)

    def train(self, folder: Path, **options: Any) -> ProcessResult:
        """Trains or resumes the run below `folder` in a process."""
        return self.process(self.training(folder), **options)

    def evaluate(self, folder: Path, **options: Any) -> ProcessResult:
        """Writes the run's predictions of the validation split in a process."""
        arguments = [self.run_of(folder).folder, "--split", "validation"]
        arguments += ["--cache", folder / "cache"]
        return self.process(lambda: tiny_run.load_script("evaluate")(*arguments), **options)

    def fork(self, main: Callable[[], int], **options: Any) -> ForkedProcess:
        """Starts a process that runs `main`; `options` are those of `ForkedProcess`."""
        return ForkedProcess(main, self._write_count, **options)

    def process(
        self,
        main: Callable[[], int],
        *,
        kill_after_seconds: float = TIMEOUT_SECONDS,
        **options: Any,
    ) -> ProcessResult:
        """Runs `main` in a process and waits for the end of that process."""
        return self.fork(main, **options).wait(kill_after_seconds)

    def training_seconds(self, least: float, most: float) -> float:
        """Returns a random time, in seconds, between two fractions of the reference's duration."""
        return self.random.uniform(least, most) * self.reference_process.seconds

    def results(self, folder: Path) -> RunResults | None:
        """Returns the results of a finished run, or None if the run cannot be evaluated."""
        if self.evaluate(folder).status != 0:
            return None
        run = self.run_of(folder)
        newest = max(run.checkpoints.iterdir(), key=lambda path: int(path.name))
        return RunResults(
            metrics=[{k: r[k] for k in r if k not in TIMES} for r in run.records()],
            last_step=newest.name,
            state=json.loads((newest / "record/metadata").read_text())["state_sha256"],
            model=run.model.read_bytes(),
            predictions=run.predictions("validation").read_bytes(),
        )

    def problem_after_resuming(self, folder: Path) -> str:
        """Resumes a run to its end; returns how it differs from the reference, or ""."""
        process = self.train(folder)
        if process.status != 0:
            return f"the run cannot be resumed: {process.describe()}"
        results = self.results(folder)
        if results is None:
            return "the run cannot be evaluated"
        pairs = zip(RunResults._fields, results, self.expected, strict=True)
        different = [name for name, result, expected in pairs if result != expected]
        return f"different {', '.join(different)}" if different else ""
