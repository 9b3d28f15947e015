"""Breaks runs in every way that comes to mind, and counts what survives.

`python tests/faults/harness.py` is the long form; `--short` is what the suite runs. A trial
survives if the run is resumed to the very bits of one that was left alone: parameters, optimiser,
metrics, exported model and predictions; or, where a file was damaged, if the program says so in one
line. Anything else is lost, and the status is 1.
"""

import argparse
import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

import process_group
import tiny_run
from trials import EPOCHS, Ended, Lab

from bilstm_attn.data.sources import Imdb
from bilstm_attn.nn.kernels import native
from bilstm_attn.runtime.distributed import LOST_SECONDS


class Trial(NamedTuple):
    """What was done, and how that came out."""

    kind: str
    survived: bool
    about: str


# Kinds of faults: each yields a trial.


def kills(lab: Lab, number: int) -> list[Trial]:
    """Kills trainings at random moments, some times in a row, then lets them end."""
    trials: list[Trial] = []
    while len(trials) < number:
        at, chain = lab.new(), []
        for _ in range(min(lab.numbers.randint(1, 6), number - len(trials))):
            if lab.numbers.random() < 0.5:
                seconds = lab.numbers.uniform(0.3, 1) * lab.reference.ended.seconds
                ended = lab.train(at, kill_after_seconds=seconds)
                moment = f"after {seconds:.2f} s"
            else:
                write = lab.numbers.randint(1, lab.reference.ended.writes)
                ended = lab.train(at, kill_at_write=write)
                moment = f"before write {write}"
            if ended.status not in (0, -signal.SIGKILL):
                moment += f", where it ended with {ended.status}: {ended.said[-200:]}"
                chain.append(Trial("kill -9 while training", False, moment))
            else:
                chain.append(Trial("kill -9 while training", True, moment))
        wrong = lab.is_whole(at)
        trials += [trial._replace(survived=trial.survived and not wrong) for trial in chain]
        _tell(wrong, [trial.about for trial in chain])
        shutil.rmtree(at)
    return trials


def kills_elsewhere(lab: Lab, number: int) -> list[Trial]:
    """Kills evaluations and preparations of data; both are then done again."""
    trials = []
    expected_cache = tiny_cache_digest(lab.cache)
    for trial in range(number):
        at = Path(tempfile.mkdtemp(dir=lab.folder))
        if trial % 2:
            shutil.copytree(lab.reference.at, at, dirs_exist_ok=True, symlinks=True)
            lab.run_of(at).predictions("validation").unlink()
            lab.evaluate(at, kill_at_write=lab.numbers.randint(1, 8))
            partial = lab.run_of(at).predictions("validation")
            whole = not partial.exists() or partial.read_bytes() == lab.expected[4]
            wrong = "" if whole and lab.results(at) == lab.expected else "other predictions"
            kind = "kill -9 while evaluating"
        else:

            def prepare(at: Path = at) -> int:
                tiny_run.write_cache(at / "cache")
                return 0

            lab.process(prepare, kill_at_write=lab.numbers.randint(1, 24))
            again = lab.process(prepare)
            wrong = again.said if again.status else ""
            if not wrong and tiny_cache_digest(at / "cache") != expected_cache:
                wrong = "other tokens"
            kind = "kill -9 while preparing data"
        trials.append(Trial(kind, not wrong, wrong))
        _tell(wrong, [kind])
        shutil.rmtree(at)
    return trials


def tiny_cache_digest(folder: Path) -> dict[str, bytes]:
    """Returns the files of the prepared data set below `folder`."""
    (tokens,) = (path for path in folder.iterdir() if "partial" not in path.name)
    return {path.name: path.read_bytes() for path in tokens.iterdir()}


def damages(lab: Lab, number: int) -> list[Trial]:
    """Flips a bit of, or cuts, one file: of a half-finished run, its data, or a cache."""
    half = lab.new()
    lab.train(half, kill_at_write=int(0.8 * lab.reference.ended.writes))
    evaluated = lab.evaluate(half)
    assert evaluated.status == 0, evaluated.said
    trials = []
    while len(trials) < number:
        for kind, below in DAMAGED.items():
            at = lab.new()
            (at / "cache").unlink()
            shutil.copytree(lab.cache, at / "cache")
            shutil.copytree(half / "runs", at / "runs")
            xdg = Path(shutil.copytree(lab.folder / "xdg", at / "xdg"))
            roots = {"run": lab.run_of(at).folder, "cache": at / "cache", "xdg": xdg}
            root, pattern = below.split(":")
            files = [p for p in sorted(roots[root].glob(pattern)) if p.is_file()]
            files = [path for path in files if path.stat().st_size]
            path = lab.numbers.choice(files)
            about = _damage(path, lab.numbers)
            os.environ["XDG_CACHE_HOME"] = str(xdg)
            wrong = _notice(lab, at, path)
            os.environ["XDG_CACHE_HOME"] = str(lab.folder / "xdg")
            trials.append(Trial(f"damaged {kind}", not wrong, f"{path.name} {about} {wrong}"))
            _tell(wrong, [f"{kind}: {path.relative_to(at)} {about}"])
            shutil.rmtree(at)
    shutil.rmtree(half)
    return trials


DAMAGED = {
    "checkpoint": "run:checkpoints/**/*",
    "exported model": "run:model.safetensors",
    "config": "run:config.json",
    "metrics": "run:metrics.jsonl",
    "record of environments": "run:environment.json",
    "predictions": "run:predictions.validation.jsonl",
    "data": "cache:*/*",
    "compiled program": "xdg:bilstm_attn/compiled/**/*",
    "native kernel": "xdg:bilstm_attn/kernels/*.so",
}


def _damage(path: Path, numbers: random.Random) -> str:
    size = path.stat().st_size
    at = numbers.randrange(size)
    if numbers.random() < 0.5:
        tiny_run.flip_bit(path, at)
        return f"flipped at {at} of {size}"
    tiny_run.truncate(path, at)
    return f"cut to {at} of {size}"


def _notice(lab: Lab, at: Path, path: Path) -> str:
    """Returns what is wrong with how damage is met: it must be told, or make no difference."""
    ended = lab.train(at)
    if path.name == "model.safetensors":  # what uses it before it is written anew
        shutil.rmtree(at / "runs")
        shutil.copytree(lab.reference.at / "runs", at / "runs")
        _damage(lab.run_of(at).model, lab.numbers)
        ended = lab.evaluate(at)
    if "Traceback" in ended.said or ended.status not in (0, 2):
        return f"status {ended.status}: {ended.said[-300:]}"
    if ended.status == 2:
        said = ended.said.strip().splitlines()[-1]
        return "" if said.startswith("error: ") and _names(said, path) else f"it says {said}"
    results = lab.results(at)
    if path.name == "model.safetensors":  # a changed blank in it changes nothing
        right = results is not None and results[-1] == lab.expected[-1]
    else:
        right = results == lab.expected
    return "" if right else "other results, and nothing said"


def _names(line: str, path: Path) -> bool:
    return any(str(parent) in line for parent in (path, *list(path.parents)[:3]))


def damaged_data_sets(lab: Lab, number: int) -> list[Trial]:
    """Flips a bit of, or cuts, one file of a data set that tensorflow-datasets prepared."""
    trials = []

    def read(folder: Path) -> int:
        source = Imdb(data_dir=folder)
        texts = (f"{label} {text}" for text, label in source.read("test"))
        print("digest", hashlib.sha256("\n".join(texts).encode()).hexdigest())
        return 0

    expected = lab.process(lambda: read(lab.data_dir)).said.split()[-1]
    for _ in range(number):
        at = Path(tempfile.mkdtemp(dir=lab.folder))
        shutil.copytree(lab.data_dir / "imdb_reviews", at / "imdb_reviews")
        files = [path for path in at.rglob("*") if path.is_file() and "unsup" not in path.name]
        path = lab.numbers.choice([path for path in files if "-train." not in path.name])
        about = f"{path.name} {_damage(path, lab.numbers)}"
        ended = lab.process(partial(read, at))
        wrong = _one_line(ended)
        if ended.status == 0 and ended.said.split()[-1] != expected:
            wrong = "other texts, and nothing said"
        trials.append(Trial("damaged prepared data set", not wrong, about))
        _tell(wrong, [about])
        shutil.rmtree(at)
    return trials


def full_disks(lab: Lab, number: int) -> list[Trial]:
    """Lets no file grow beyond a random size; then there is space again."""
    trials = []
    for _ in range(number):
        at, most = lab.new(), int(10 ** lab.numbers.uniform(1, 5))

        def fill(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        ended = lab.train(at, prepare=fill)
        wrong = _one_line(ended) or lab.is_whole(at)
        trials.append(Trial("full disk", not wrong, f"{most} bytes a file {wrong}"))
        _tell(wrong, [f"full disk, {most} bytes a file"])
        shutil.rmtree(at)
    return trials


def _one_line(ended: Ended) -> str:
    if ended.status == 0:
        return ""
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    right = ended.status == 2 and len(errors) == 1 and "Traceback" not in ended.said
    return "" if right else f"status {ended.status}: {ended.said[-300:]}"


def read_only_folders(lab: Lab, number: int) -> list[Trial]:
    """Takes away the right to write into one of a run's folders; then gives it back."""
    trials = []
    for _ in range(number):
        at = lab.new()
        lab.train(at, kill_after_seconds=lab.numbers.uniform(0.3, 1) * lab.reference.ended.seconds)
        folders = [at, *(path for path in at.rglob("*") if path.is_dir())]
        folder = lab.numbers.choice([path for path in folders if not path.is_symlink()])
        folder.chmod(0o555)
        ended = lab.train(at, prepare=_give_up_roots_rights)
        folder.chmod(0o755)
        wrong = _one_line(ended) or lab.is_whole(at)
        trials.append(Trial("read-only folder", not wrong, f"{folder} {wrong}"))
        _tell(wrong, [f"read-only {folder.relative_to(at)}"])
        shutil.rmtree(at)
    return trials


def _give_up_roots_rights() -> None:
    """Makes permissions hold for root as well (CAP_DAC_OVERRIDE out of the effective set)."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for at in (0, 1):  # effective, permitted
        data[at] &= ~(1 << 1)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def jumping_clocks(lab: Lab, number: int) -> list[Trial]:
    """Trains while the clock jumps by years, with files of any age; killed once on the way."""
    trials = []
    for _ in range(number):
        at = lab.new()
        jump = partial(_let_the_clock_jump, lab.numbers.random(), time.time)
        lab.train(at, prepare=jump, kill_after_seconds=0.8 * lab.reference.ended.seconds)
        for path in at.rglob("*"):
            age = lab.numbers.uniform(-1e8, 1e8)
            os.utime(path, (time.time() + age, time.time() - age), follow_symlinks=False)
        ended = lab.train(at, prepare=jump)
        wrong = "" if ended.status == 0 else ended.said[-300:]
        wrong = wrong or lab.is_whole(at)
        trials.append(Trial("clock that jumps", not wrong, wrong))
        _tell(wrong, ["clock that jumps"])
        shutil.rmtree(at)
    return trials


def _let_the_clock_jump(seed: float, now: Callable[[], float]) -> None:
    jumps = random.Random(seed)
    time.time = lambda: now() + jumps.uniform(-1e8, 1e8)
    time.time_ns = lambda: int(1e9 * time.time())


def two_runs(lab: Lab, number: int) -> list[Trial]:
    """Starts two trainings in one folder, one a little after the other."""
    trials = []
    for _ in range(number):
        at = lab.new()

        def main(at: Path = at) -> int:
            return tiny_run.train(at, "--name", "tiny", train__epochs=EPOCHS)

        one = lab.fork(main)
        time.sleep(lab.numbers.uniform(0, 0.7) * lab.reference.ended.seconds)
        ends = [lab.end(started) for started in (one, lab.fork(main))]
        said = " ".join(ended.said for ended in ends)
        refused = "another process is training" in said or "holds this run already" in said
        right = sorted(ended.status for ended in ends) == [0, 2] and refused
        wrong = "" if right else f"{ends}"
        wrong = wrong or lab.is_whole(at)
        trials.append(Trial("two runs in a folder", not wrong, wrong))
        _tell(wrong, ["two runs in a folder"])
        shutil.rmtree(at)
    return trials


PEERS = ("--train.epochs", "30")


def lost_peers(lab: Lab, number: int) -> list[Trial]:
    """Kills one of two processes that train together; the other must leave, and both go on."""
    trials, alone = [], lab.new()
    assert [status for status, *_ in process_group.end(process_group.start(alone, 2, *PEERS))] == [
        0,
        0,
    ]
    for _ in range(number):
        at, lost = lab.new(), lab.numbers.randrange(2)
        started = process_group.start(at, 2, *PEERS)
        process_group.wait_for(lab.run_of(at).config_file)
        time.sleep(lab.numbers.uniform(0, 2))
        started[lost].kill()
        begun = time.monotonic()
        ends, seconds = process_group.end(started), time.monotonic() - begun
        status, _, errors = ends[1 - lost]
        wrong = "" if status == 0 or "was lost" in errors else f"status {status}: {errors[-300:]}"
        if seconds > LOST_SECONDS + 10:
            wrong = f"the other one stayed for {seconds:.0f} s"
        again = process_group.end(process_group.start(at, 2, *PEERS, "--resume"))
        if [status for status, *_ in again] != [0, 0]:
            wrong = wrong or f"it cannot be resumed: {again}"
        elif process_group.digests(lab.run_of(at)) != process_group.digests(lab.run_of(alone)):
            wrong = wrong or "other results"
        trials.append(Trial("lost one of two processes", not wrong, wrong))
        _tell(wrong, [f"lost process {lost}"])
        shutil.rmtree(at)
    return trials


def _tell(wrong: str, what: Sequence[str]) -> None:
    if wrong:
        print(f"LOST: {'; '.join(what)}: {wrong}", file=sys.stderr, flush=True)


def table(trials: Sequence[Trial]) -> str:
    """Returns a Markdown table: tried, survived, lost."""
    lines = ["|| tried | survived | lost |", "|---|---|---|---|"]
    for kind in dict.fromkeys(trial.kind for trial in trials):
        own = [trial.survived for trial in trials if trial.kind == kind]
        lines.append(f"| {kind} | {len(own)} | {sum(own)} | {len(own) - sum(own)} |")
    return "\n".join(lines)


KINDS: dict[str, tuple[Callable[[Lab, int], list[Trial]], int, int]] = {
    "kills": (kills, 4, 100),  # in the short form, and in the long
    "kills-elsewhere": (kills_elsewhere, 2, 30),
    "damages": (damages, len(DAMAGED), 10 * len(DAMAGED)),
    "damaged-data-sets": (damaged_data_sets, 0, 20),
    "full-disks": (full_disks, 1, 15),
    "read-only": (read_only_folders, 1, 15),
    "clocks": (jumping_clocks, 1, 10),
    "two-runs": (two_runs, 1, 10),
    "lost-peers": (lost_peers, 0, 6),  # the suite has two of its own
}


def main() -> int:
    """Runs the trials; returns 1 if one was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--only", choices=KINDS, help="one kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("~/tensorflow_datasets").expanduser(),
        help="where the long form finds a prepared IMDB",
    )
    given = parser.parse_args()
    begun, trials = time.monotonic(), []
    native.FLAGS = ("-O0", "-std=c++17", "-shared", "-fPIC")  # soon built
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), given.seed, given.data_dir)
        for name, (kind, short, long) in KINDS.items():
            number = short if given.short else long
            if number and given.only in (None, name):
                trials += kind(lab, number)
                print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print(table(trials))
    return int(not all(trial.survived for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
