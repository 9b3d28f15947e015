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

from bilstm_attn.backend import choose_backend, keep_compiled
from bilstm_attn.checkpoint import Exported, load_model
from bilstm_attn.cluster import (
    LOST_SECONDS,
    broadcast,
    from_first,
    is_first,
    join,
    require_same,
    run_together,
)
from bilstm_attn.config import Backend, BackendChoice, Config, fields_of, require
from bilstm_attn.data.batches import (
    Examples,
    count_vocabulary,
    draw_parts,
    read_rows,
    select_examples,
)
from bilstm_attn.data.cache import DataPlaces, TokenCache, cache_folder, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.evaluate import make_logits_step, predict_logits, require_finite, save_predictions
from bilstm_attn.interruption import Interrupted
from bilstm_attn.member import Member
from bilstm_attn.metrics import measure
from bilstm_attn.model import Model
from bilstm_attn.objectives import OBJECTIVES
from bilstm_attn.process import Processes, ask_for_same_bits
from bilstm_attn.registry import make, unknown
from bilstm_attn.report import draw_curves
from bilstm_attn.run import Run, describe_environment
from bilstm_attn.sharding import make_mesh, place_whole
from bilstm_attn.terminal import Show, percent
from bilstm_attn.text import Vocabulary
from bilstm_attn.train import train
from bilstm_attn.vectors import digest_of


def run_training(
    config: Config,
    places: DataPlaces,
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
        ask_for_same_bits()
    if together.distributed:
        join(together.coordinator, together.processes, together.process_id)
    mesh = make_mesh(config.data.group_size // config.train.microbatches, devices)

    def run_here() -> int:
        show = Show(quiet=not is_first())
        if (processes := jax.process_count()) > 1:
            show.say(
                f"{processes} processes; if one is lost, the others end within {LOST_SECONDS} s, "
                "and all of them can be started again with --resume"
            )
        _require_same_program(config, resume, seeds, log_every_steps)
        check_names(config)
        configs = [
            dataclasses.replace(config, seed=config.seed + number) for number in range(seeds)
        ]
        folders = [Run(runs / one.name / f"seed{one.seed}") for one in configs]
        _check(folders, configs, resume)
        for run in folders if tensorboard else ():
            run.open_tensorboard()
        keep_compiled(show)
        wanted = backend
        if wanted == "auto" and resume:  # the backend it was begun with, so that its bits go on
            begun = from_first(folders[0].environments)
            wanted = begun[-1]["backend"] if begun else "auto"
        chosen_backend = choose_backend(wanted, config, show)
        tokens = _prepare(config, places, show)
        _say_lengths(tokens, show)
        members = [make_member(tokens, one, run) for one, run in zip(configs, folders, strict=True)]
        sizes = sorted({member.vocabulary.size for member in members})
        require(
            len(sizes) == 1,
            f"the seeds' vocabularies differ in size ({sizes[0]} to {sizes[-1]} words), so that "
            "they have no common program; lower --data.vocabulary-size or leave out --seeds",
        )
        model = Model(config.model, sizes[0], chosen_backend)
        first = members[0]
        show.say(
            f"training on {first.training.size:,} reviews, measuring on {first.watched.size:,} of "
            f"{config.train.each_epoch}, on {mesh.size} × {mesh.devices.flat[0].device_kind}, "
            f"backend {model.backend}"
        )
        environment = describe_environment(list(mesh.devices.flat), tokens.meta["sha256"])
        environment |= {"backend": model.backend, "seeds": seeds}
        if config.model.vectors:
            environment |= {"vectors_sha256": digest_of(Path(config.model.vectors))}
        require_same(
            backend=model.backend,
            data=environment["data_sha256"],
            vectors=environment.get("vectors_sha256"),
        )
        with contextlib.ExitStack() as stack:
            saved = from_first(lambda: _begin(stack, folders, configs, environment, resume=resume))
            if resume and not saved:
                show.say("no checkpoint was saved yet; starting at step 0")
            try:
                train(members, model, mesh=mesh, show=show, log_every_steps=log_every_steps)
            except Interrupted as interrupted:
                command = ["python", *sys.argv] + ([] if resume else ["--resume"])
                show.say(
                    f"stopped at step {interrupted.step}; its state is saved; go on with\n"
                    f"  {shlex.join(command)}"
                )
                return interrupted.status
            _finish(members, tokens, model, mesh, show)
        return 0

    return run_together(run_here) if together.distributed else run_here()


def _require_same_program(config: Config, resume: bool, seeds: int, log_every_steps: int) -> None:
    """Raises a `UserError` in every process unless all of them run the same."""
    fields = {f"config field {name}": value for name, value in fields_of(config).items()}
    here = describe_environment([], "")
    versions = {f"version of {name}": version for name, version in here["versions"].items()}
    program = {"python": here["python"], "git revision": here["git_revision"]}
    flags = {"--resume": resume, "--seeds": seeds, "--log-every-steps": log_every_steps}
    require_same(**fields, **versions, **program, **flags)


def _check(folders: Sequence[Run], configs: Sequence[Config], resume: bool) -> None:
    """Raises a `UserError`, in every process, unless the configs may run in the folders."""

    def check() -> None:
        for run, config in zip(folders, configs, strict=True):
            run.check(config, resume=resume)

    from_first(check)


def _begin(
    stack: contextlib.ExitStack,
    folders: Sequence[Run],
    configs: Sequence[Config],
    environment: dict[str, Any],
    *,
    resume: bool,
) -> bool:
    """Makes the folders, kept from other processes until the stack ends.

    Returns:
      Whether all of them have checkpoints.
    """
    for run, config in zip(folders, configs, strict=True):
        stack.enter_context(run.held())
        run.check(config, resume=resume)  # what another process may have begun meanwhile
        run.start(config, environment)
    return all(any(path.name.isdecimal() for path in run.checkpoints.glob("*")) for run in folders)


def _prepare(config: Config, places: DataPlaces, show: Show) -> TokenCache:
    """Returns the tokens, which the first process prepares; the others too, on other machines."""

    def prepare() -> None:
        prepare_tokens(config.data.dataset, places, Show(quiet=True))

    if jax.process_count() > 1:
        from_first(prepare)
    return prepare_tokens(config.data.dataset, places, show)


def _say_lengths(tokens: TokenCache, show: Show) -> None:
    """Prints the tutorial's two figures."""
    counts = tokens.split("train").counts + 1
    show.say(
        f"{len(counts):,} training reviews: longest {counts.max()}, "
        f"mean {counts.mean():.5f} tokens, with the start token"
    )


def make_member(tokens: TokenCache, config: Config, run: Run) -> Member:
    """Returns a seed's words, the reviews trained on, and those measured each epoch."""
    train_split = tokens.split("train")
    rows = read_rows(train_split, config.data)
    training, held_out = draw_parts(rows, config.data, config.seed)
    vocabulary = count_vocabulary(
        train_split, training, tokens.lexicon(), config.data.vocabulary_size
    )
    if config.train.each_epoch == "test":
        watched = split_examples(tokens, "test", vocabulary, config)
    else:
        watched = _examples(tokens, "train", held_out, vocabulary, config)
    return Member(
        config, vocabulary, _examples(tokens, "train", training, vocabulary, config), watched, run
    )


def _finish(
    members: Sequence[Member], tokens: TokenCache, model: Model, mesh: Mesh, show: Show
) -> None:
    """Measures what is left to measure; draws the curves; prints results and where they lie."""
    config, accuracies = members[0].config, []
    for member in members:
        if len(members) > 1:
            show.say(f"seed {member.config.seed}")
        if config.train.each_epoch == "validation" and "test" in tokens.splits:
            accuracies.append(_measure_test_once(member, tokens, model, mesh, show))
        else:
            accuracies.append(_say_chosen(member, show))
        if is_first():
            _say_where(member.run, config, show)
        member.run.close()
    if len(members) > 1:
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        show.say(
            f"accuracy over {len(members)} seeds: {percent(mean)} ± {percent(spread)} "
            "(sample standard deviation)"
        )


def _say_chosen(member: Member, show: Show) -> float:
    """Prints the accuracy of the exported epoch and how it was chosen; returns it."""
    config, chosen = member.config, member.chosen
    accuracy = chosen[f"{config.train.each_epoch}_accuracy"]
    if config.train.each_epoch == "test":
        show.say(f"test accuracy {percent(accuracy)} after epoch {chosen['epoch']}")
        return accuracy
    selected = "" if config.train.select == "last" else ", selected on these very reviews"
    show.say(
        f"held-out accuracy {percent(accuracy)} after epoch "
        f"{chosen['epoch']} ({member.watched.size:,} reviews{selected})"
    )
    return accuracy


def _say_where(run: Run, config: Config, show: Show) -> None:
    """Draws the curves; prints where they and the run lie, and how to try it."""
    draw_curves(run.records(), config.train.each_epoch, run.curves)
    show.say(f"curves   {run.curves}")
    show.say(f"run      {run.folder}")
    here = shlex.quote(str(run.folder))
    show.say(f'try it   python scripts/predict.py {here} "A film to see twice, and then again."')


def check_names(config: Config) -> None:
    """Raises a `UserError` for a name or option in `config` that no table knows."""
    jax.eval_shape(Model(config.model, vocabulary_size=5).init, jax.random.key(0))
    make("objective", OBJECTIVES, config.train.objective, config.train.objective_options)
    cache_folder(config.data.dataset, Path())


def split_examples(
    tokens: TokenCache, split: str, vocabulary: Vocabulary, config: Config
) -> Examples:
    """Returns the reviews of a split, or of `validation`: those held out from training by seed.

    Raises:
      UserError: the data set has no such split, or nothing was held out.
    """
    if split not in (*tokens.splits, "validation"):
        raise unknown(f"split of {config.data.dataset}", split, (*tokens.splits, "validation"))
    if split != "validation":
        rows = read_rows(tokens.split(split), config.data)
        return _examples(tokens, split, rows, vocabulary, config)
    _, rows = draw_parts(read_rows(tokens.split("train"), config.data), config.data, config.seed)
    if len(rows) == 0:
        raise UserError("this run held out no validation reviews; give --split test")
    return _examples(tokens, "train", rows, vocabulary, config)


def _examples(
    tokens: TokenCache, split: str, rows: np.ndarray, vocabulary: Vocabulary, config: Config
) -> Examples:
    return select_examples(
        tokens.split(split), rows, vocabulary, tokens.lexicon(), config.data.max_tokens
    )


def measure_split(
    exported: Exported,
    run: Run,
    tokens: TokenCache,
    split: str,
    backend: Backend,
    mesh: Mesh,
    show: Show,
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
    with show.bar(f"evaluate {split}", examples.size, 0) as bar:
        logits = predict_logits(
            make_logits_step(model, mesh),
            place_whole(exported.params, mesh),
            examples,
            config.data,
            mesh,
            bar.advance,
        )
    require_finite(logits, f"split {split!r}")
    from_first(lambda: save_predictions(run.predictions(split), examples, logits))
    return measure(logits, examples.labels)


def _measure_test_once(
    member: Member, tokens: TokenCache, model: Model, mesh: Mesh, show: Show
) -> float:
    """Measures the exported epoch on test and logs it, if that is not done; returns accuracy."""
    run = member.run
    done = from_first(lambda: [line for line in run.records() if line["kind"] == "final"])
    if done:
        measured = done[0]
    else:
        params = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(model.init, jax.random.key(0)),
        )
        params = broadcast(load_model(run.exported()).params if is_first() else params)
        exported = Exported(params, member.config, member.vocabulary)
        measured = measure_split(exported, run, tokens, "test", model.backend, mesh, show)
        step = member.chosen["step"]
        run.log({"kind": "final", "step": step, "split": "test", **measured})
    show.say(f"test accuracy {percent(measured['accuracy'])}, measured once, at the end")
    return measured["accuracy"]


def run_evaluation(
    folder: Path,
    split: str | None,
    places: DataPlaces,
    devices: int | None,
    backend: BackendChoice,
) -> int:
    """Measures a run's exported model on a split and prints it; returns the exit status.

    Without a split it is test, or validation where the data set has no test.

    Raises:
      UserError: not a run, no such split, or no data; says what to do.
    """
    show, run = Show(), Run(folder)
    exported = load_model(run.exported())
    config = exported.config
    mesh = make_mesh(config.data.group_size, devices)
    keep_compiled(show)
    tokens = prepare_tokens(config.data.dataset, places, show)
    split = split or ("test" if "test" in tokens.splits else "validation")
    chosen_backend = choose_backend(backend, config, show)
    measured = measure_split(exported, run, tokens, split, chosen_backend, mesh, show)
    show.say(f"split              {split}")
    for name, value in measured.items():
        show.say(f"{name.replace('_', ' '):18} {value:.6f}")
    show.say(f"predictions        {run.predictions(split)}")
    return 0
