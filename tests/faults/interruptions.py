"""Interrupted processes: kills, lost peers, two processes in one folder, and a jumping clock."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import process_group
import tiny_run
from sandbox import FaultResult, Sandbox, fault_result

from bilstm_attn.runtime.distributed import LOST_SECONDS


def kill_while_training(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Kills each run up to six times at random moments, then resumes it to its end."""
    results: list[FaultResult] = []
    while len(results) < count:
        folder = sandbox.new_folder()
        kills = min(sandbox.random.randint(1, 6), count - len(results))
        killed = [_kill_training(sandbox, folder) for _ in range(kills)]
        final_problem = sandbox.problem_after_resuming(folder)
        results += [
            fault_result("kill -9 while training", moment, problem or final_problem)
            for moment, problem in killed
        ]
        shutil.rmtree(folder)
    return results


def _kill_training(sandbox: Sandbox, folder: Path) -> tuple[str, str]:
    """Kills one training process; returns the moment, and a problem if it failed before."""
    if sandbox.random.random() < 0.5:
        seconds = sandbox.training_seconds(0.3, 1)
        process = sandbox.train(folder, kill_after_seconds=seconds)
        moment = f"after {seconds:.2f} s"
    else:
        write = sandbox.random.randint(1, sandbox.reference_process.writes)
        process = sandbox.train(folder, kill_at_write=write)
        moment = f"before write {write}"
    return moment, "" if process.status in (0, -signal.SIGKILL) else process.describe()


def kill_while_evaluating_or_preparing(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Kills preparations of data and evaluations in turn, and repeats each of them."""
    kinds = [_kill_preparation, _kill_evaluation]
    return [kinds[index % 2](sandbox) for index in range(count)]


def _kill_evaluation(sandbox: Sandbox) -> FaultResult:
    folder = Path(tempfile.mkdtemp(dir=sandbox.folder))
    shutil.copytree(sandbox.reference, folder, dirs_exist_ok=True, symlinks=True)
    predictions = sandbox.run_of(folder).predictions("validation")
    predictions.unlink()
    write = sandbox.random.randint(1, 8)
    sandbox.evaluate(folder, kill_at_write=write)
    complete = not predictions.exists() or predictions.read_bytes() == sandbox.expected.predictions
    right = complete and sandbox.results(folder) == sandbox.expected
    shutil.rmtree(folder)
    problem = "" if right else "different predictions"
    return fault_result("kill -9 while evaluating", f"before write {write}", problem)


def _kill_preparation(sandbox: Sandbox) -> FaultResult:
    folder = Path(tempfile.mkdtemp(dir=sandbox.folder))

    def prepare() -> int:
        tiny_run.write_cache(folder)
        return 0

    write = sandbox.random.randint(1, 24)
    sandbox.process(prepare, kill_at_write=write)
    repeated = sandbox.process(prepare)
    problem = repeated.describe() if repeated.status else ""
    if not problem and _cached_files(folder) != _cached_files(sandbox.cache):
        problem = "different tokens"
    shutil.rmtree(folder)
    return fault_result("kill -9 while preparing data", f"before write {write}", problem)


def _cached_files(cache: Path) -> dict[str, bytes]:
    """Returns the content of each file of the one complete data set below `cache`."""
    (folder,) = (path for path in cache.iterdir() if "partial" not in path.name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def jumping_clock(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Trains while the clock jumps by years and files have random dates; kills each run once."""
    results = []
    for _ in range(count):
        folder = sandbox.new_folder()
        jump = partial(_make_the_clock_jump, sandbox.random.random(), time.time)
        seconds = 0.8 * sandbox.reference_process.seconds
        sandbox.train(folder, prepare=jump, kill_after_seconds=seconds)
        for path in folder.rglob("*"):
            age = sandbox.random.uniform(-1e8, 1e8)
            os.utime(path, (time.time() + age, time.time() - age), follow_symlinks=False)
        process = sandbox.train(folder, prepare=jump)
        problem = "" if process.status == 0 else process.describe()
        problem = problem or sandbox.problem_after_resuming(folder)
        results.append(fault_result("clock that jumps", f"killed after {seconds:.2f} s", problem))
        shutil.rmtree(folder)
    return results


def _make_the_clock_jump(seed: float, now: Callable[[], float]) -> None:
    jumps = random.Random(seed)
    time.time = lambda: now() + jumps.uniform(-1e8, 1e8)
    time.time_ns = lambda: int(1e9 * time.time())


def two_runs_in_one_folder(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Starts two trainings of one run, the second a random time after the first."""
    results = []
    for _ in range(count):
        folder = sandbox.new_folder()
        main = sandbox.training(folder)
        first, delay = sandbox.fork(main), sandbox.training_seconds(0, 0.7)
        time.sleep(delay)
        processes = [process.wait() for process in (first, sandbox.fork(main))]
        output = " ".join(process.output for process in processes)
        refused = "another process is training" in output or "holds this run already" in output
        right = sorted(process.status for process in processes) == [0, 2] and refused
        problem = "" if right else " and ".join(process.describe() for process in processes)
        problem = problem or sandbox.problem_after_resuming(folder)
        results.append(fault_result("two runs in a folder", f"{delay:.2f} s apart", problem))
        shutil.rmtree(folder)
    return results


OPTIONS = ("--train.epochs", "30")


def lost_peer(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Kills one of two processes that train together; the other must exit, and both resume."""
    reference = sandbox.new_folder()
    results, processes = [], process_group.end(process_group.start(reference, 2, *OPTIONS))
    assert [status for status, *_ in processes] == [0, 0], processes
    for _ in range(count):
        folder, lost = sandbox.new_folder(), sandbox.random.randrange(2)
        problem = _kill_one_of_two(sandbox, folder, lost)
        resumed = process_group.end(process_group.start(folder, 2, *OPTIONS, "--resume"))
        digests, expected = (
            process_group.digests(sandbox.run_of(path)) for path in (folder, reference)
        )
        if [status for status, *_ in resumed] != [0, 0]:
            problem = problem or f"the run cannot be resumed: {resumed}"
        elif digests != expected:
            problem = problem or "different states"
        results.append(fault_result("lost one of two processes", f"process {lost}", problem))
        shutil.rmtree(folder)
    return results


def _kill_one_of_two(sandbox: Sandbox, folder: Path, lost: int) -> str:
    """Kills process `lost` of two; returns what is wrong with the other's exit, or ""."""
    processes = process_group.start(folder, 2, *OPTIONS)
    process_group.wait_for(sandbox.run_of(folder).config_file)
    time.sleep(sandbox.random.uniform(0, 2))
    processes[lost].kill()
    killed_at = time.monotonic()
    status, _, errors = process_group.end(processes)[1 - lost]
    seconds = time.monotonic() - killed_at
    if seconds > LOST_SECONDS + 10:
        return f"the other process exited only after {seconds:.0f} s"
    return "" if status == 0 or "was lost" in errors else f"status {status}: {errors[-300:]}"
