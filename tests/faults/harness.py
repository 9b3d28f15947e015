"""Injects faults into tiny runs and counts the runs that survive.

`python tests/faults/harness.py` injects faults of every kind for about twenty minutes; the test
suite runs it with `--short`. A run survives if it resumes to the bits of an undisturbed run
(parameters, optimiser state, metrics, exported model and predictions), or, where a file is damaged,
if the program reports the damage in one line. The exit status is 1 if a run is lost.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS.parent)]

import disk_faults
import interruptions
from sandbox import FaultResult, Sandbox

from bilstm_attn.nn.kernels import native

# The function that injects a kind of faults, and its number of faults with and without `--short`.
KINDS: dict[str, tuple[Callable[[Sandbox, int], list[FaultResult]], int, int]] = {
    "kills": (interruptions.kill_while_training, 4, 100),
    "other-kills": (interruptions.kill_while_evaluating_or_preparing, 2, 30),
    "damage": (disk_faults.damaged_files, len(disk_faults.DAMAGED), 10 * len(disk_faults.DAMAGED)),
    "damaged-data-sets": (disk_faults.damaged_data_sets, 0, 20),
    "full-disk": (disk_faults.full_disk, 1, 15),
    "read-only": (disk_faults.read_only_folder, 1, 15),
    "clock": (interruptions.jumping_clock, 1, 10),
    "two-runs": (interruptions.two_runs_in_one_folder, 1, 10),
    "lost-peer": (interruptions.lost_peer, 0, 6),  # tests/runtime/test_distributed.py has two
}


def table(results: Sequence[FaultResult]) -> str:
    """Returns a Markdown table of the faults injected, survived and lost, per kind."""
    lines = ["|| tried | survived | lost |", "|---|---|---|---|"]
    for kind in dict.fromkeys(result.kind for result in results):
        survived = [result.survived for result in results if result.kind == kind]
        tried, count = len(survived), sum(survived)
        lines.append(f"| {kind} | {tried} | {count} | {tried - count} |")
    return "\n".join(lines)


def main() -> int:
    """Injects the faults; returns 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few faults of each kind")
    parser.add_argument("--only", choices=KINDS, help="one kind of faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("~/tensorflow_datasets").expanduser(),
        help="folder of the IMDB data set that damaged-data-sets copies",
    )
    options = parser.parse_args()
    started, results = time.monotonic(), []
    native.FLAGS = ("-O0", "-std=c++17", "-shared", "-fPIC")  # compiles faster
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder), options.seed, options.data_dir)
        for name, (inject, short, full) in KINDS.items():
            count = short if options.short else full
            if count and options.only in (None, name):
                results += inject(sandbox, count)
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(results))
    return int(not all(result.survived for result in results))


if __name__ == "__main__":
    sys.exit(main())
