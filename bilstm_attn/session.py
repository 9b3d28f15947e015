"""What the scripts do: a training run and an evaluation, from config to the last line printed."""

import contextlib
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilstm_attn.checkpoint import Exported, load_model
from bilstm_attn.config import Backend, BackendChoice, Config, require
from bilstm_attn.data.batches import Examples, count_vocabulary, draw_parts, select_examples
from bilstm_attn.data.cache import (
    DataPlaces,
    TokenCache,
    cache_folder,
    default_cache_dir,
    prepare_tokens,
)
from bilstm_attn.encoder import MADE_FOR, prepare_native, refusal
from bilstm_attn.errors import UserError
from bilstm_attn.evaluate import make_logits_step, predict_logits, save_predictions
from bilstm_attn.kernels.native import UnavailableError, cpu_digest
from bilstm_attn.metrics import measure
from bilstm_attn.model import Model
from bilstm_attn.objectives import OBJECTIVES
from bilstm_attn.registry import make, unknown
from bilstm_attn.report import draw_curves
from bilstm_attn.run import Run, describe_environment
from bilstm_attn.sharding import make_mesh, place_whole
from bilstm_attn.terminal import Show, percent
from bilstm_attn.text import Vocabulary
from bilstm_attn.train import Interrupted, train

MOST_COMPILED = 2**30  # bytes


def run_training(
    config: Config,
    places: DataPlaces,
    *,
    runs: Path,
    resume: bool,
    devices: int | None,
    backend: BackendChoice,
    log_every_steps: int,
    tensorboard: bool,
) -> int:
    """Trains `config` in its folder below `runs`; returns the exit status.

    Raises:
      UserError: a mistake in the config, the data or the folder; says what to do.
    """
    show = Show()
    require(log_every_steps > 0, f"--log-every-steps must be above 0, got {log_every_steps}")
    mesh = make_mesh(config.data.group_size // config.train.microbatches, devices)
    check_names(config)
    run = Run(runs / config.name / f"seed{config.seed}")
    run.check(config, resume=resume)
    if tensorboard:
        run.open_tensorboard()
    keep_compiled(show)
    if backend == "auto" and resume:  # the backend it was begun with, so that its bits go on
        backend = run.environment().get("backend", "auto")
    chosen_backend = choose_backend(backend, config, show)
    tokens = prepare_tokens(config.data.dataset, places, show)
    _say_lengths(tokens, show)
    vocabulary, training, watched = _examples_of_run(tokens, config)
    model = Model(config.model, vocabulary.size, chosen_backend)
    show.say(
        f"training on {training.size:,} reviews, measuring on {watched.size:,} of "
        f"{config.train.each_epoch}, on {mesh.size} × {mesh.devices.flat[0].device_kind}, "
        f"backend {model.backend}"
    )
    with run.held():
        run.check(config, resume=resume)  # what another process may have begun meanwhile
        environment = describe_environment(list(mesh.devices.flat), tokens.meta["sha256"])
        run.start(config, environment | {"backend": model.backend})
        if resume and not any(path.name.isdecimal() for path in run.checkpoints.glob("*")):
            show.say("no checkpoint was saved yet; starting at step 0")
        try:
            chosen = train(
                config,
                model,
                vocabulary,
                training,
                watched,
                run=run,
                mesh=mesh,
                show=show,
                log_every_steps=log_every_steps,
            )
        except Interrupted as interrupted:
            command = ["python", *sys.argv] + ([] if resume else ["--resume"])
            show.say(
                f"stopped at step {interrupted.step}; its state is saved; go on with\n"
                f"  {shlex.join(command)}"
            )
            return interrupted.status
        if config.train.each_epoch == "validation" and "test" in tokens.splits:
            _measure_test_once(run, chosen, tokens, chosen_backend, mesh, show)
        else:
            _say_chosen(config, chosen, watched.size, show)
        _say_where(run, config, show)
        run.close()
        return 0


def _say_lengths(tokens: TokenCache, show: Show) -> None:
    """Prints the tutorial's two figures."""
    counts = tokens.split("train").counts + 1
    show.say(
        f"{len(counts):,} training reviews: longest {counts.max()}, "
        f"mean {counts.mean():.5f} tokens, with the start token"
    )


def _examples_of_run(tokens: TokenCache, config: Config) -> tuple[Vocabulary, Examples, Examples]:
    """Returns the words of the reviews trained on, those reviews, and those measured each epoch."""
    train_split = tokens.split("train")
    training, held_out = draw_parts(len(train_split.labels), config.data, config.seed)
    vocabulary = count_vocabulary(
        train_split, training, tokens.lexicon(), config.data.vocabulary_size
    )
    if config.train.each_epoch == "test":
        watched = split_examples(tokens, "test", vocabulary, config)
    else:
        watched = _examples(tokens, "train", held_out, vocabulary, config)
    return vocabulary, _examples(tokens, "train", training, vocabulary, config), watched


def _say_chosen(config: Config, chosen: dict[str, Any], reviews: int, show: Show) -> None:
    """Prints the accuracy of the exported epoch, on `reviews` reviews, and how it was chosen."""
    if config.train.each_epoch == "test":
        show.say(f"test accuracy {percent(chosen['test_accuracy'])} after epoch {chosen['epoch']}")
        return
    selected = "" if config.train.select == "last" else ", selected on these very reviews"
    show.say(
        f"held-out accuracy {percent(chosen['validation_accuracy'])} after epoch "
        f"{chosen['epoch']} ({reviews:,} reviews{selected})"
    )


def _say_where(run: Run, config: Config, show: Show) -> None:
    """Draws the curves; prints where they and the run lie, and how to try it."""
    draw_curves(run.records(), config.train.each_epoch, run.curves)
    show.say(f"curves   {run.curves}")
    show.say(f"run      {run.folder}")
    here = shlex.quote(str(run.folder))
    show.say(f'try it   python scripts/predict.py {here} "A film to see twice, and then again."')


def keep_compiled(show: Show) -> None:
    """Lets jax keep what it compiles, up to a gigabyte, so that the next run starts in seconds.

    Where JAX_COMPILATION_CACHE_DIR says another place, that is taken.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = default_cache_dir() / "compiled" / cpu_digest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            show.say(f"what is compiled is not kept ({error}); set XDG_CACHE_HOME")
        else:
            forget_oldest(folder, MOST_COMPILED)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def forget_oldest(folder: Path, most_bytes: int) -> None:
    """Deletes the files of a folder that were used longest ago, beyond `most_bytes`.

    jax's own limit loses its way where a process was killed while it wrote an entry.
    """
    used = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has deleted it
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                used.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    for _, size, path in sorted(used, reverse=True):
        most_bytes -= size
        if most_bytes < 0:
            with contextlib.suppress(OSError):
                path.unlink()


def check_names(config: Config) -> None:
    """Raises a `UserError` for a name or option in `config` that no table knows."""
    jax.eval_shape(Model(config.model, vocabulary_size=5).init, jax.random.key(0))
    make("objective", OBJECTIVES, config.train.objective, config.train.objective_options)
    cache_folder(config.data.dataset, Path())


def choose_backend(wanted: BackendChoice, config: Config, show: Show) -> Backend:
    """Returns how the recurrence runs; `auto` is the native kernel where there is one, else `scan`.

    On a GPU or TPU `auto` is `scan` too, for `pallas` is unproven there.

    Raises:
      UserError: a kernel is asked for and cannot be had; says why.
    """
    device = jax.default_backend()
    kernel: Backend = "native" if wanted == "auto" else wanted
    made_for = MADE_FOR.get(kernel, (device,))
    if device not in made_for:
        reason = f"it is for {' or '.join(made_for)}, not {device}"
    elif (reason := refusal(kernel, config.model)) is None:
        try:
            if kernel == "native":
                prepare_native(show.say)
            return kernel
        except UnavailableError as error:
            reason = str(error)
            if wanted == "auto":
                show.say(f"no native kernel ({reason}); the scan runs")
    if wanted != "auto":
        raise UserError(f"no {kernel} kernel ({reason}); or give --backend scan")
    return "scan"


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
        rows = np.arange(len(tokens.split(split).labels))
        return _examples(tokens, split, rows, vocabulary, config)
    reviews = len(tokens.split("train").labels)
    _, rows = draw_parts(reviews, config.data, config.seed)
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
    mesh: Any,
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
    if not np.isfinite(logits).all():
        raise UserError(
            f"the model's logits on split {split!r} are not finite; its training has diverged: "
            "train again with a lower --optim.learning-rate"
        )
    save_predictions(run.predictions(split), examples, logits)
    return measure(logits, examples.labels)


def _measure_test_once(
    run: Run, chosen: dict[str, Any], tokens: TokenCache, backend: Backend, mesh: Any, show: Show
) -> None:
    """Measures the exported epoch on the test split and logs it, if that is not done yet."""
    done = [record for record in run.records() if record["kind"] == "final"]
    if done:
        measured = done[0]
    else:
        exported = load_model(run.exported())
        measured = measure_split(exported, run, tokens, "test", backend, mesh, show)
        run.log({"kind": "final", "step": chosen["step"], "split": "test", **measured})
    show.say(f"test accuracy {percent(measured['accuracy'])}, measured once, at the end")


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
