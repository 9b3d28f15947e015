"""The train command: from a config to trained run folders and printed results."""

import contextlib
import dataclasses
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bilstm_attn.config import Backend, Config, fields_of, require
from bilstm_attn.data.token_cache import DataLocations, TokenCache, cache_folder, prepare_tokens
from bilstm_attn.data.tokenisers import make_tokeniser
from bilstm_attn.inference.exported import task_of
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.registry import make
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.runtime.distributed import (
    LOST_SECONDS,
    is_main_process,
    join_processes,
    on_main_process,
    require_same,
    run_distributed,
)
from bilstm_attn.runtime.plugins import require_plugins
from bilstm_attn.runtime.signals import Interrupted
from bilstm_attn.runtime.xla_flags import request_deterministic_gpu_ops
from bilstm_attn.training.environment import describe_environment
from bilstm_attn.training.initial import digest_of
from bilstm_attn.training.loop import OnEpoch, ignore, train
from bilstm_attn.training.objectives import OBJECTIVES
from bilstm_attn.training.options import TrainOptions
from bilstm_attn.training.results import Setting, finish
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.training.seed_replica import SeedReplica, make_replica
from bilstm_attn.training.train_program import Program, make_program
from bilstm_attn.training.vmapped_seeds import VmappedSeeds


def run_training(config: Config, options: TrainOptions) -> int:
    """Trains a config, with one seed or several; returns the exit status.

    Raises:
      UserError: a mistake in the config, the data or the folder.
    """

    def run_here() -> int:
        try:
            train_seeds(config, options)
        except Interrupted as interrupted:
            if is_main_process():
                command = ["python", *sys.argv] + ([] if options.resume else ["--resume"])
                print(
                    f"stopped at step {interrupted.step}; its state is saved; continue with\n"
                    f"  {shlex.join(command)}"
                )
            return interrupted.status
        return 0

    if options.deterministic:
        request_deterministic_gpu_ops()
    if not options.processes.distributed:
        return run_here()
    processes = options.processes
    join_processes(processes.coordinator, processes.processes, processes.process_id)
    return run_distributed(run_here)


def train_seeds(
    config: Config,
    options: TrainOptions,
    on_epoch: OnEpoch = ignore,
    *,
    quiet: bool = False,
) -> list[SeedReplica]:
    """Trains every seed of the options in its folder, and measures test once where it may.

    On a CPU the seeds take turns with one compilation, and each has the bits of its own run; on an
    accelerator they train in one program.

    Raises:
      UserError: a mistake in the config, the data or the folder.
      Interrupted: a signal stopped the training; its state is saved.
    """
    options.check(config)
    # Before any other use of JAX, which would fix the number of CPU devices.
    mesh = make_mesh(config.data.group_size // config.train.microbatches, options.devices)
    console = Console(quiet=quiet or not is_main_process())
    if (processes := jax.process_count()) > 1:
        console.print(
            f"{processes} processes; if one is lost, the others end within {LOST_SECONDS} s, "
            "and all of them can be started again with --resume"
        )
    _require_same_program(config, options)
    seeds = range(config.seed, config.seed + options.seeds)
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    run_dirs = [RunDir(options.runs / each.name / f"seed{each.seed}") for each in configs]
    if options.resume:
        _require_plugins_of(run_dirs[0], console)
    check_names(config)
    _check_folders(run_dirs, configs, options.resume)
    for run_dir in run_dirs if options.tensorboard else ():
        run_dir.open_tensorboard()
    enable_compile_cache(console.print)
    backend = _choose_backend(run_dirs[0], config, options, console)
    tokens = _prepare(config, options.locations, console)
    _print_lengths(tokens, console)
    replicas = [
        make_replica(tokens, each, run_dir, options.log_every_steps)
        for each, run_dir in zip(configs, run_dirs, strict=True)
    ]
    on_accelerator = mesh.devices.flat[0].platform != "cpu"
    vmapped = options.seeds > 1 and (options.vmap_seeds or on_accelerator)
    if vmapped:
        _require_common_vocabulary_size(replicas)
    console.print(
        f"training on {replicas[0].size:,} examples, evaluating on "
        f"{replicas[0].eval_examples.size:,} of {config.train.eval_split}, on {mesh.size} × "
        f"{mesh.devices.flat[0].device_kind}, backend {backend}"
    )
    setting = Setting(tokens, backend, mesh, console)
    environments = _describe_environments(replicas, setting, vmapped)
    with _begin(replicas, environments, options.resume, console):
        train_all = _train_together if vmapped else _train_in_turns
        accuracies = train_all(replicas, setting, on_epoch)
    if len(replicas) > 1:
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        console.print(
            f"accuracy over {len(replicas)} seeds: {percent(mean)} ± {percent(spread)} "
            "(sample standard deviation)"
        )
    return replicas


def _train_in_turns(
    replicas: Sequence[SeedReplica], setting: Setting, on_epoch: OnEpoch
) -> list[float]:
    """Trains one replica after another; returns their accuracies.

    Replicas whose vocabularies have the same size share one compiled program.
    """
    programs: dict[int, Program] = {}
    accuracies = []
    for replica in replicas:
        if len(replicas) > 1:
            setting.console.print(f"seed {replica.config.seed}")
        size = replica.vocabulary.size
        if size not in programs:
            model = Model(replica.config.model, size, setting.backend)
            programs[size] = make_program(replica.config, model, replica.size, setting.mesh)
        train(replica, programs[size], console=setting.console, on_epoch=on_epoch)
        accuracies.append(finish(replica, setting))
    return accuracies


def _train_together(
    replicas: Sequence[SeedReplica], setting: Setting, on_epoch: OnEpoch
) -> list[float]:
    """Trains all replicas in one program, vmapped over seeds; returns their accuracies."""
    first = replicas[0]
    model = Model(first.config.model, first.vocabulary.size, setting.backend)
    program = make_program(first.config, model, first.size, setting.mesh, seeds=len(replicas))
    train(VmappedSeeds(replicas), program, console=setting.console, on_epoch=on_epoch)
    return [finish(replica, setting) for replica in replicas]


def _require_common_vocabulary_size(replicas: Sequence[SeedReplica]) -> None:
    """Raises a `UserError` if the seeds' vocabularies differ in size."""
    sizes = sorted({replica.vocabulary.size for replica in replicas})
    require(
        len(sizes) == 1,
        f"the seeds' vocabularies differ in size ({sizes[0]} to {sizes[-1]} words), so that they "
        "have no common program; lower --data.vocabulary-size, or train the seeds one by one",
    )


def _choose_backend(
    run_dir: RunDir, config: Config, options: TrainOptions, console: Console
) -> Backend:
    """Returns the backend; a resumed run has its recorded one unless an option says otherwise."""
    backend = options.backend
    if backend == "auto" and options.resume and (starts := on_main_process(run_dir.environments)):
        backend = starts[-1]["backend"]
    return choose_backend(backend, config, console.print)


def _require_plugins_of(run: RunDir, console: Console) -> None:
    """Raises a `UserError`, in every process, unless the plug-ins of the run are loaded."""
    starts = on_main_process(run.environments)
    if starts:
        require_plugins(starts[-1].get("plugins", []), str(run.folder), console.print)


def _require_same_program(config: Config, options: TrainOptions) -> None:
    """Raises a `UserError` in every process unless all of them run the same."""
    fields = {f"config field {name}": value for name, value in fields_of(config).items()}
    here = describe_environment([], "")
    versions = {f"version of {name}": version for name, version in here["versions"].items()}
    program = {"python": here["python"], "git revision": here["git_revision"]}
    program["plug-ins"] = sorted(plugin["sha256"] for plugin in here["plugins"])
    flags = {
        "--resume": options.resume,
        "--seeds": options.seeds,
        "--vmap-seeds": options.vmap_seeds,
        "--log-every-steps": options.log_every_steps,
    }
    require_same(**fields, **versions, **program, **flags)


def _check_folders(run_dirs: Sequence[RunDir], configs: Sequence[Config], resume: bool) -> None:
    """Raises a `UserError`, in every process, unless the configs may run in the folders."""

    def check() -> None:
        for run_dir, config in zip(run_dirs, configs, strict=True):
            run_dir.check(config, resume=resume)

    on_main_process(check)


def _describe_environments(
    replicas: Sequence[SeedReplica], setting: Setting, vmapped: bool
) -> list[dict[str, Any]]:
    """Returns the environment of each seed; reads initial values and prints their coverage."""
    data_sha256 = setting.tokens.meta["sha256"]
    environment = describe_environment(list(setting.mesh.devices.flat), data_sha256)
    environment |= {"backend": setting.backend, "seeds": len(replicas) if vmapped else 1}
    init_from = replicas[0].config.train.init_from
    if init_from:
        environment |= {"init_from_sha256": digest_of(init_from)}
    require_same(
        backend=setting.backend,
        data=data_sha256,
        init_from=environment.get("init_from_sha256"),
    )
    return [environment | _read_initial(replica, setting) for replica in replicas]


def _read_initial(replica: SeedReplica, setting: Setting) -> dict[str, Any]:
    """Reads the initial values of a seed, prints their coverage, returns their record."""
    model = Model(replica.config.model, replica.vocabulary.size, setting.backend)
    values = replica.initial_values(model)
    if values is None:
        return {}
    setting.console.print(f"initialised from {replica.config.train.init_from}: {values.coverage}")
    return values.record


@contextlib.contextmanager
def _begin(
    replicas: Sequence[SeedReplica],
    environments: Sequence[dict[str, Any]],
    resume: bool,
    console: Console,
) -> Iterator[None]:
    """Makes the run folders and locks them; other processes cannot train in them meanwhile."""
    with contextlib.ExitStack() as stack:

        def begin() -> bool:
            for replica, environment in zip(replicas, environments, strict=True):
                stack.enter_context(replica.run.held())
                # Another process may have begun a run since the first check.
                replica.run.check(replica.config, resume=resume)
                replica.run.start(replica.config, environment)
            return any(
                path.name.isdecimal()
                for replica in replicas
                for path in replica.run.checkpoints.glob("*")
            )

        saved = on_main_process(begin)
        if resume and not saved:
            console.print("no checkpoint was saved yet; starting at step 0")
        yield


def _prepare(config: Config, locations: DataLocations, console: Console) -> TokenCache:
    """Returns the tokens; process 0 prepares them first, and processes on other machines after."""

    def prepare() -> None:
        prepare_tokens(config.data, locations, Console(quiet=True))

    if jax.process_count() > 1:
        on_main_process(prepare)
    return prepare_tokens(config.data, locations, console)


def _print_lengths(tokens: TokenCache, console: Console) -> None:
    """Prints the longest and the mean length of the training texts, the tutorial's two figures."""
    counts = tokens.split("train").counts + 1
    console.print(
        f"{len(counts):,} training texts: longest {counts.max()}, "
        f"mean {counts.mean():.5f} tokens, with the start token"
    )


def check_names(config: Config) -> None:
    """Raises a `UserError` for an unknown name or option in the config."""
    jax.eval_shape(Model(config.model, vocabulary_size=5).init, jax.random.key(0))
    make("objective", OBJECTIVES, config.train.objective, config.train.objective_options)
    make_tokeniser(config.data)
    cache_folder(config.data, Path())
    task_of(config)
