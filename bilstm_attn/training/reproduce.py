"""The verify command: the first steps of a recorded run, repeated and compared."""

import tempfile
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bilstm_attn.config import Backend, Config
from bilstm_attn.data.token_cache import prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.runtime.plugins import require_plugins
from bilstm_attn.training.environment import describe_environment
from bilstm_attn.training.initial import require_recorded
from bilstm_attn.training.loop import PROOF_STEP, train
from bilstm_attn.training.options import VerifyOptions
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.seed_replica import make_replica
from bilstm_attn.training.train_program import make_program

ROUNDING = 1e-5  # relative, of the loss; other orders of summation differ by about 1e-7


def run_verification(options: VerifyOptions) -> int:
    """Repeats a run's first steps and prints whether bits, or numbers up to rounding, agree.

    It uses the recorded devices and backend if they are available, and prints every difference.

    Returns:
      The exit status: 0 if bits or rounding agree, else 1.

    Raises:
      UserError: not a run, one without a proof, or one on other data.
    """
    folder, locations = options.verify, options.locations
    console, run = Console(), RunDir(folder)
    config, proofs = run.config(), [line for line in run.records() if line["kind"] == "proof"]
    if not proofs:
        raise UserError(
            f"{folder} has no proof to compare with: it ended before step {PROOF_STEP}, or is of "
            "an earlier version; give another run"
        )
    proof = proofs[-1]
    recorded = run.environment(before_step=proof["step"])
    require_plugins(recorded.get("plugins", []), str(folder), console.print)
    mesh = _make_mesh_as(recorded, config)
    enable_compile_cache(console.print)
    backend = _choose_backend_as(recorded, config, console)
    tokens = prepare_tokens(config.data, locations, console)
    here = describe_environment(list(mesh.devices.flat), tokens.meta["sha256"])
    here |= {"backend": backend, "seeds": 1}
    if here["data_sha256"] != recorded["data_sha256"]:
        raise UserError(f"{folder} was trained on other data; give the --cache it had")
    require_recorded(config.train.init_from, recorded, folder)
    for line in _differences(recorded, here):
        console.print(f"differs  {line}")
    with tempfile.TemporaryDirectory() as again:
        replica = make_replica(tokens, config, RunDir(Path(again)))
        model = Model(config.model, replica.vocabulary.size, backend)
        program = make_program(config, model, replica.size, mesh)
        train(replica, program, console=console, until_step=proof["step"])
        (repeated,) = (line for line in replica.run.records() if line["kind"] == "proof")
    return _judge(proof, repeated, console)


def _make_mesh_as(recorded: dict[str, Any], config: Config) -> Mesh:
    """Returns a mesh of as many devices as recorded, or of those available here."""
    rows = config.data.group_size // config.train.microbatches
    try:
        return make_mesh(rows, len(recorded["devices"]))
    except UserError:
        return make_mesh(rows)


def _choose_backend_as(recorded: dict[str, Any], config: Config, console: Console) -> Backend:
    try:
        return choose_backend(recorded["backend"], config, console.print)
    except UserError:
        return choose_backend("auto", config, console.print)


def _differences(recorded: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns a line for each recorded circumstance that differs here and may change bits."""
    lines = []
    compared = {name for name in recorded if not name.startswith(("init_from_", "vectors_"))}
    for name in compared - {"command", "versions", "from_step"}:
        if recorded[name] != here.get(name):
            lines.append(f"{name}: {recorded[name]} there, {here.get(name)} here")
    for package, version in here["versions"].items():
        if (there := recorded["versions"].get(package)) != version:
            lines.append(f"version of {package}: {there} there, {version} here")
    return sorted(lines)


def _judge(proof: dict[str, Any], repeated: dict[str, Any], console: Console) -> int:
    """Prints whether two proofs agree; returns the exit status."""
    after = f"after {proof['step']} steps"
    if repeated["state_sha256"] == proof["state_sha256"]:
        console.print(f"the same bits {after}: parameters, optimiser and loss")
        return 0
    apart = abs(repeated["loss"] - proof["loss"]) / abs(proof["loss"])
    if apart <= ROUNDING:
        console.print(f"the same to rounding {after}, not the same bits: loss {apart:.0e} apart")
        return 0
    console.print(
        f"not the same {after}: loss {repeated['loss']:.6f}, recorded {proof['loss']:.6f}"
    )
    return 1
