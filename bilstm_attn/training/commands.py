"""What the scripts do: a training run and an evaluation, from config to the last line printed."""

import contextlib
import dataclasses
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Backend, BackendChoice, Config, fields_of, require
from bilstm_attn.data.splits import (
    count_vocabulary,
    draw_parts,
    examples_of_rows,
    read_rows,
    split_examples,
)
from bilstm_attn.data.token_cache import DataLocations, TokenCache, cache_folder, prepare_tokens
from bilstm_attn.data.tokenisers import make_tokeniser
from bilstm_attn.errors import UserError
from bilstm_attn.inference.evaluate import (
    make_logits_step,
    predict_logits,
    require_finite,
    save_predictions,
)
from bilstm_attn.inference.exported import Exported, load_model, task_of
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.registry import make
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.devices import make_mesh, replicate
from bilstm_attn.runtime.distributed import (
    LOST_SECONDS,
    broadcast,
    is_main_process,
    join_processes,
    on_main_process,
    require_same,
    run_distributed,
)
from bilstm_attn.runtime.plugins import require_plugins
from bilstm_attn.runtime.signals import Interrupted
from bilstm_attn.runtime.xla_flags import Processes, request_deterministic_gpu_ops
from bilstm_attn.training.initial import digest_of
from bilstm_attn.training.loop import train
from bilstm_attn.training.objectives import OBJECTIVES
from bilstm_attn.training.run_dir import RunDir, describe_environment
from bilstm_attn.training.run_table import draw_curves
from bilstm_attn.training.seed_replica import SeedReplica


def run_training(
    config: Config,
    locations: DataLocations,
    together: Processes,
    *,
    runs: Path,
    resume: bool,
    seeds: int,
    devices: int | None,
    backend: BackendChoice,
    deterministic: bool,
    log_every_steps: int,
    tensorboard: bool,
) -> int:
    """Trains `config` in its folder below `runs`; returns the exit status.

    Of several seeds each has a folder of its own.

    Raises:
      UserError: a mistake in the config, the data or the folder; says what to do.
    """
    require(log_every_steps > 0, f"--log-every-steps must be above 0, got {log_every_steps}")
    require(
        0 < seeds <= 2**32 - config.seed,
        f"--seeds must be above 0, and the last seed below 2**32, got {seeds} from {config.seed}",
    )
    if deterministic:
        request_deterministic_gpu_ops()
    if together.distributed:
        join_processes(together.coordinator, together.processes, together.process_id)
    mesh = make_mesh(config.data.group_size // config.train.microbatches, devices)

    def run_here() -> int:
        console = Console(quiet=not is_main_process())
        if (processes := jax.process_count()) > 1:
            console.print(
                f"{processes} processes; if one is lost, the others end within {LOST_SECONDS} s, "
                "and all of them can be started again with --resume"
            )
        _require_same_program(config, resume, seeds, log_every_steps)
        if resume:
            _require_plugins_of(RunDir(runs / config.name / f"seed{config.seed}"), console)
        check_names(config)
        configs = [
            dataclasses.replace(config, seed=config.seed + number) for number in range(seeds)
        ]
        folders = [RunDir(runs / one.name / f"seed{one.seed}") for one in configs]
        _check(folders, configs, resume)
        for run in folders if tensorboard else ():
            run.open_tensorboard()
        enable_compile_cache(console.print)
        wanted = backend
        if wanted == "auto" and resume:  # the backend it was begun with, so that its bits go on
            begun = on_main_process(folders[0].environments)
            wanted = begun[-1]["backend"] if begun else "auto"
        chosen_backend = choose_backend(wanted, config, console.print)
        tokens = _prepare(config, locations, console)
        _say_lengths(tokens, console)
        replicas = [
            make_replica(tokens, one, run) for one, run in zip(configs, folders, strict=True)
        ]
        sizes = sorted({replica.vocabulary.size for replica in replicas})
        require(
            len(sizes) == 1,
            f"the seeds' vocabularies differ in size ({sizes[0]} to {sizes[-1]} words), so that "
            "they have no common program; lower --data.vocabulary-size or leave out --seeds",
        )
        model = Model(config.model, sizes[0], chosen_backend)
        first = replicas[0]
        console.print(
            f"training on {first.training.size:,} reviews, "
            f"measuring on {first.eval_examples.size:,} of "
            f"{config.train.eval_split}, on {mesh.size} × {mesh.devices.flat[0].device_kind}, "
            f"backend {model.backend}"
        )
        environment = describe_environment(list(mesh.devices.flat), tokens.meta["sha256"])
        environment |= {"backend": model.backend, "seeds": seeds}
        environments = [environment] * seeds
        if init_from := config.train.init_from:
            environment |= {"init_from_sha256": digest_of(init_from)}
            environments = [
                environment | _read_initial(replica, model, console) for replica in replicas
            ]
        require_same(
            backend=model.backend,
            data=environment["data_sha256"],
            init_from=environment.get("init_from_sha256"),
        )
        with contextlib.ExitStack() as stack:
            saved = on_main_process(
                lambda: _begin(stack, folders, configs, environments, resume=resume)
            )
            if resume and not saved:
                console.print("no checkpoint was saved yet; starting at step 0")
            try:
                train(replicas, model, mesh=mesh, console=console, log_every_steps=log_every_steps)
            except Interrupted as interrupted:
                command = ["python", *sys.argv] + ([] if resume else ["--resume"])
                console.print(
                    f"stopped at step {interrupted.step}; its state is saved; go on with\n"
                    f"  {shlex.join(command)}"
                )
                return interrupted.status
            _finish(replicas, tokens, model, mesh, console)
        return 0

    return run_distributed(run_here) if together.distributed else run_here()


def _require_plugins_of(run: RunDir, console: Console) -> None:
    """Raises a `UserError`, in every process, unless the plug-ins of the run are loaded."""
    starts = on_main_process(run.environments)
    if starts:
        require_plugins(starts[-1].get("plugins", []), str(run.folder), console.print)


def _read_initial(replica: SeedReplica, model: Model, console: Console) -> dict[str, Any]:
    """Reads the initial values of a seed, prints their coverage, returns their record."""
    values = replica.initial_values(model)
    if values is None:
        return {}
    console.print(f"initialised from {replica.config.train.init_from}: {values.coverage}")
    return values.record


def _require_same_program(config: Config, resume: bool, seeds: int, log_every_steps: int) -> None:
    """Raises a `UserError` in every process unless all of them run the same."""
    fields = {f"config field {name}": value for name, value in fields_of(config).items()}
    here = describe_environment([], "")
    versions = {f"version of {name}": version for name, version in here["versions"].items()}
    program = {"python": here["python"], "git revision": here["git_revision"]}
    program["plug-ins"] = sorted(plugin["sha256"] for plugin in here["plugins"])
    flags = {"--resume": resume, "--seeds": seeds, "--log-every-steps": log_every_steps}
    require_same(**fields, **versions, **program, **flags)


def _check(folders: Sequence[RunDir], configs: Sequence[Config], resume: bool) -> None:
    """Raises a `UserError`, in every process, unless the configs may run in the folders."""

    def check() -> None:
        for run, config in zip(folders, configs, strict=True):
            run.check(config, resume=resume)

    on_main_process(check)


def _begin(
    stack: contextlib.ExitStack,
    folders: Sequence[RunDir],
    configs: Sequence[Config],
    environments: Sequence[dict[str, Any]],
    *,
    resume: bool,
) -> bool:
    """Makes the folders, kept from other processes until the stack ends.

    Returns:
      Whether all of them have checkpoints.
    """
    for run, config, environment in zip(folders, configs, environments, strict=True):
        stack.enter_context(run.held())
        run.check(config, resume=resume)  # what another process may have begun meanwhile
        run.start(config, environment)
    return all(any(path.name.isdecimal() for path in run.checkpoints.glob("*")) for run in folders)


def _prepare(config: Config, locations: DataLocations, console: Console) -> TokenCache:
    """Returns the tokens, which the first process prepares; the others too, on other machines."""

    def prepare() -> None:
        prepare_tokens(config.data, locations, Console(quiet=True))

    if jax.process_count() > 1:
        on_main_process(prepare)
    return prepare_tokens(config.data, locations, console)


def _say_lengths(tokens: TokenCache, console: Console) -> None:
    """Prints the tutorial's two figures."""
    counts = tokens.split("train").counts + 1
    console.print(
        f"{len(counts):,} training reviews: longest {counts.max()}, "
        f"mean {counts.mean():.5f} tokens, with the start token"
    )


def make_replica(tokens: TokenCache, config: Config, run: RunDir) -> SeedReplica:
    """Returns a seed's words, the reviews trained on, and those measured each epoch."""
    train_split = tokens.split("train")
    rows = read_rows(train_split, config.data)
    training, held_out = draw_parts(rows, config.data, config.seed)
    vocabulary = count_vocabulary(
        train_split, training, tokens.lexicon(), config.data.vocabulary_size
    )
    if config.train.eval_split == "test":
        eval_examples = split_examples(tokens, "test", vocabulary, config)
    else:
        eval_examples = examples_of_rows(tokens, "train", held_out, vocabulary, config)
    return SeedReplica(
        config,
        vocabulary,
        examples_of_rows(tokens, "train", training, vocabulary, config),
        eval_examples,
        run,
    )


def _finish(
    replicas: Sequence[SeedReplica], tokens: TokenCache, model: Model, mesh: Mesh, console: Console
) -> None:
    """Measures what is left to measure; draws the curves; prints results and where they lie."""
    config, accuracies = replicas[0].config, []
    for replica in replicas:
        if len(replicas) > 1:
            console.print(f"seed {replica.config.seed}")
        if config.train.eval_split == "validation" and "test" in tokens.splits:
            accuracies.append(_measure_test_once(replica, tokens, model, mesh, console))
        else:
            accuracies.append(_say_chosen(replica, console))
        if is_main_process():
            _say_where(replica.run, config, console)
        replica.run.close()
    if len(replicas) > 1:
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        console.print(
            f"accuracy over {len(replicas)} seeds: {percent(mean)} ± {percent(spread)} "
            "(sample standard deviation)"
        )


def _say_chosen(replica: SeedReplica, console: Console) -> float:
    """Prints the accuracy of the exported epoch and how it was chosen; returns it."""
    config, chosen = replica.config, replica.chosen
    accuracy = chosen[f"{config.train.eval_split}_accuracy"]
    if config.train.eval_split == "test":
        console.print(f"test accuracy {percent(accuracy)} after epoch {chosen['epoch']}")
        return accuracy
    selected = "" if config.train.select == "last" else ", selected on these very reviews"
    console.print(
        f"held-out accuracy {percent(accuracy)} after epoch "
        f"{chosen['epoch']} ({replica.eval_examples.size:,} reviews{selected})"
    )
    return accuracy


def _say_where(run: RunDir, config: Config, console: Console) -> None:
    """Draws the curves; prints where they and the run lie, and how to try it."""
    draw_curves(run.records(), config.train.eval_split, run.curves)
    console.print(f"curves   {run.curves}")
    console.print(f"run      {run.folder}")
    here = shlex.quote(str(run.folder))
    console.print(
        f'try it   python scripts/predict.py {here} "A film to see twice, and then again."'
    )


def check_names(config: Config) -> None:
    """Raises a `UserError` for a name or option in `config` that no table knows."""
    jax.eval_shape(Model(config.model, vocabulary_size=5).init, jax.random.key(0))
    make("objective", OBJECTIVES, config.train.objective, config.train.objective_options)
    make_tokeniser(config.data)
    cache_folder(config.data, Path())
    task_of(config)


def measure_split(
    exported: Exported,
    run: RunDir,
    tokens: TokenCache,
    split: str,
    backend: Backend,
    mesh: Mesh,
    console: Console,
) -> dict[str, float]:
    """Returns every measure of the exported model over a labelled split; saves the predictions.

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    config = exported.config
    examples = split_examples(tokens, split, exported.vocabulary, config)
    if (examples.labels < 0).any():
        raise UserError(f"split {split!r} has no labels to measure against; give --split test")
    model = Model(config.model, exported.vocabulary.size, backend)
    with console.bar(f"evaluate {split}", examples.size, 0) as bar:
        logits = predict_logits(
            make_logits_step(model, mesh),
            replicate(exported.params, mesh),
            examples,
            config.data,
            mesh,
            bar.advance,
        )
    require_finite(logits, f"split {split!r}")
    on_main_process(lambda: save_predictions(run.predictions(split), examples, logits, model.task))
    return model.task.measure(logits, examples.labels)


def _measure_test_once(
    replica: SeedReplica, tokens: TokenCache, model: Model, mesh: Mesh, console: Console
) -> float:
    """Measures the exported epoch on test and logs it, if that is not done; returns accuracy."""
    run = replica.run
    done = on_main_process(lambda: [line for line in run.records() if line["kind"] == "final"])
    if done:
        measured = done[0]
    else:
        params = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(model.init, jax.random.key(0)),
        )
        params = broadcast(load_model(run.exported()).params if is_main_process() else params)
        exported = Exported(params, replica.config, replica.vocabulary)
        measured = measure_split(exported, run, tokens, "test", model.backend, mesh, console)
        step = replica.chosen["step"]
        run.log({"kind": "final", "step": step, "split": "test", **measured})
    console.print(f"test accuracy {percent(measured['accuracy'])}, measured once, at the end")
    return measured["accuracy"]


def run_evaluation(
    folder: Path,
    split: str | None,
    locations: DataLocations,
    devices: int | None,
    backend: BackendChoice,
) -> int:
    """Measures a run's exported model on a split and prints it; returns the exit status.

    Without a split it is test, or validation where the data set has no test.

    Raises:
      UserError: not a run, no such split, or no data; says what to do.
    """
    console, run = Console(), RunDir(folder)
    exported = load_model(run.exported())
    config = exported.config
    mesh = make_mesh(config.data.group_size, devices)
    enable_compile_cache(console.print)
    tokens = prepare_tokens(config.data, locations, console)
    split = split or ("test" if "test" in tokens.splits else "validation")
    chosen_backend = choose_backend(backend, config, console.print)
    measured = measure_split(exported, run, tokens, split, chosen_backend, mesh, console)
    console.print(f"split              {split}")
    for name, value in measured.items():
        console.print(f"{name.replace('_', ' '):18} {value:.6f}")
    console.print(f"predictions        {run.predictions(split)}")
    return 0
