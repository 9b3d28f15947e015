"""Faults of the disk: damaged files, no space, and folders without write permission."""

import ctypes
import hashlib
import os
import random
import resource
import shutil
import tempfile
from functools import partial
from pathlib import Path

import tiny_run
from sandbox import FaultResult, Sandbox, fault_result

from bilstm_attn.data.sources import Imdb

# Kind of file: the root below which it is found, and a pattern.
DAMAGED = {
    "checkpoint": ("run", "checkpoints/**/*"),
    "exported model": ("run", "model.safetensors"),
    "config": ("run", "config.json"),
    "metrics": ("run", "metrics.jsonl"),
    "record of environments": ("run", "environment.json"),
    "predictions": ("run", "predictions.validation.jsonl"),
    "data": ("cache", "*/*"),
    "compiled program": ("xdg", "bilstm_attn/compiled/**/*"),
    "native kernel": ("xdg", "bilstm_attn/kernels/*.so"),
}


def damaged_files(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Damages one file of a half-trained run, of its data or of a compilation cache."""
    half = sandbox.new_folder()
    sandbox.train(half, kill_at_write=int(0.8 * sandbox.reference_process.writes))
    evaluated = sandbox.evaluate(half)
    assert evaluated.status == 0, evaluated.output
    results: list[FaultResult] = []
    while len(results) < count:
        results += [_damaged_file(sandbox, half, kind) for kind in DAMAGED]
    shutil.rmtree(half)
    return results


def _damaged_file(sandbox: Sandbox, half: Path, kind: str) -> FaultResult:
    folder = sandbox.new_folder()
    (folder / "cache").unlink()
    shutil.copytree(sandbox.cache, folder / "cache")
    shutil.copytree(half / "runs", folder / "runs")
    xdg = Path(shutil.copytree(sandbox.folder / "xdg", folder / "xdg"))
    root, pattern = DAMAGED[kind]
    roots = {"run": sandbox.run_of(folder).folder, "cache": folder / "cache", "xdg": xdg}
    files = [path for path in sorted(roots[root].glob(pattern)) if path.is_file()]
    path = sandbox.random.choice([path for path in files if path.stat().st_size])
    detail = f"{path.relative_to(folder)} {_damage(path, sandbox.random)}"
    os.environ["XDG_CACHE_HOME"] = str(xdg)
    problem = _problem_with_damage(sandbox, folder, path)
    os.environ["XDG_CACHE_HOME"] = str(sandbox.folder / "xdg")
    shutil.rmtree(folder)
    return fault_result(f"damaged {kind}", detail, problem)


def _damage(path: Path, generator: random.Random) -> str:
    """Flips a random bit of a file, or truncates it; returns a description."""
    size = path.stat().st_size
    offset = generator.randrange(size)
    if generator.random() < 0.5:
        tiny_run.flip_bit(path, offset)
        return f"with byte {offset} of {size} changed"
    tiny_run.truncate(path, offset)
    return f"truncated to {offset} of {size} bytes"


def _problem_with_damage(sandbox: Sandbox, folder: Path, path: Path) -> str:
    """Returns "" if the damage at `path` is reported in one line or changes no result."""
    process = sandbox.train(folder)
    if path.name == "model.safetensors":  # training overwrites it: damage a finished run's
        shutil.rmtree(folder / "runs")
        shutil.copytree(sandbox.reference / "runs", folder / "runs")
        _damage(sandbox.run_of(folder).model, sandbox.random)
        process = sandbox.evaluate(folder)
    if "Traceback" in process.output or process.status not in (0, 2):
        return process.describe()
    if process.status == 2:
        line = process.output.strip().splitlines()[-1]
        right = line.startswith("error: ") and _names(line, path)
        return "" if right else f"the error does not name the file: {line}"
    results = sandbox.results(folder)
    if path.name == "model.safetensors":  # its bytes may differ in blanks without effect
        right = results is not None and results.predictions == sandbox.expected.predictions
    else:
        right = results == sandbox.expected
    return "" if right else "different results without an error"


def _names(line: str, path: Path) -> bool:
    return any(str(parent) in line for parent in (path, *list(path.parents)[:3]))


def damaged_data_sets(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Damages one file of a data set that tensorflow-datasets prepared."""
    results = []
    undamaged = sandbox.process(partial(_print_digest_of_imdb, sandbox.data_dir)).output.split()[-1]
    for _ in range(count):
        folder = Path(tempfile.mkdtemp(dir=sandbox.folder))
        shutil.copytree(sandbox.data_dir / "imdb_reviews", folder / "imdb_reviews")
        files = [path for path in folder.rglob("*") if path.is_file() and "unsup" not in path.name]
        path = sandbox.random.choice([path for path in files if "-train." not in path.name])
        detail = f"{path.name} {_damage(path, sandbox.random)}"
        process = sandbox.process(partial(_print_digest_of_imdb, folder))
        problem = process.problem()
        if process.status == 0 and process.output.split()[-1] != undamaged:
            problem = "different texts without an error"
        results.append(fault_result("damaged prepared data set", detail, problem))
        shutil.rmtree(folder)
    return results


def _print_digest_of_imdb(data_dir: Path) -> int:
    texts = (f"{label} {text}" for text, label in Imdb(data_dir=data_dir).read("test"))
    print("digest", hashlib.sha256("\n".join(texts).encode()).hexdigest())
    return 0


def full_disk(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Trains while no file can exceed a random size; resumes without that limit."""
    results = []
    for _ in range(count):
        folder, limit = sandbox.new_folder(), int(10 ** sandbox.random.uniform(1, 5))
        process = sandbox.train(folder, prepare=partial(_limit_file_size, limit))
        problem = process.problem() or sandbox.problem_after_resuming(folder)
        results.append(fault_result("full disk", f"{limit} bytes per file", problem))
        shutil.rmtree(folder)
    return results


def _limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def read_only_folder(sandbox: Sandbox, count: int) -> list[FaultResult]:
    """Resumes a killed run while one of its folders is read-only, then again without that."""
    results = []
    for _ in range(count):
        folder = sandbox.new_folder()
        sandbox.train(folder, kill_after_seconds=sandbox.training_seconds(0.3, 1))
        folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        read_only = sandbox.random.choice([path for path in folders if not path.is_symlink()])
        read_only.chmod(0o555)
        process = sandbox.train(folder, prepare=_drop_the_right_to_override_permissions)
        read_only.chmod(0o755)
        problem = process.problem() or sandbox.problem_after_resuming(folder)
        results.append(
            fault_result("read-only folder", str(read_only.relative_to(folder)), problem)
        )
        shutil.rmtree(folder)
    return results


def _drop_the_right_to_override_permissions() -> None:
    """Makes file permissions apply to root too, by clearing the capability CAP_DAC_OVERRIDE."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    capabilities = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, capabilities) == 0
    for index in (0, 1):  # effective, permitted
        capabilities[index] &= ~(1 << 1)
    assert libc.capset(header, capabilities) == 0, os.strerror(ctypes.get_errno())
