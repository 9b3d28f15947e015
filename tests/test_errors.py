"""Mistakes and accidents: one clear line, a non-zero exit, no traceback, and nothing saved is lost.

What one room alone decides is tested with it (test_config, test_checkpoint, test_run, test_predict,
test_sources, test_terminal); here the scripts are run whole.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import ROOT, SIZES, cut, flip, full_disk, script, tiny, train, trained, write_cache

from bilstm_attn import checkpoint, session
from bilstm_attn import train as loop
from bilstm_attn.checkpoint import load_model
from bilstm_attn.config import recipe_names
from bilstm_attn.data import imdb, sources
from bilstm_attn.data.cache import TokenCache, cache_folder, prepare_tokens
from bilstm_attn.errors import UserError
from bilstm_attn.run import Run
from bilstm_attn.terminal import Show

evaluate, predict, prepare, report = map(script, ("evaluate", "predict", "prepare_data", "report"))


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Path:
    """A folder with "cache", and a finished run in "runs"/tiny; copy before changing it."""
    return trained(tmp_path_factory)


@pytest.fixture
def own(done, tmp_path, monkeypatch) -> Path:
    """A copy that the test may change; it is also the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(done, tmp_path / "own"))


@pytest.fixture
def empty(done, tmp_path, monkeypatch) -> Path:
    """A folder with the finished "cache" and no run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cache").symlink_to(done / "cache")
    return tmp_path / "empty"


def tiny_run(folder: Path, name: str = "tiny") -> Run:
    return Run(folder / "runs" / name / "seed0")


def error_of(call, *arguments, **given) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Names and values


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.cell", "lsmt"], "unknown cell 'lsmt'; choose gru, lstm (did you mean 'lstm'?)"),
        (["--data.dataset", "imbd"], "unknown dataset 'imbd'; choose imdb, movie_reviews"),
        (["--model.attention", "dit"], "unknown attention 'dit'; choose additive, additive_keys,"),
        (["--model.pooling", "men"], "unknown pooling 'men'; choose attention, last, max, mean"),
        (["--train.objective", "x"], "unknown objective 'x'; choose cross_entropy"),
        (
            ["--model.cell-options", "forget_bais", "1"],
            "unknown option 'forget_bais' of cell 'lstm'; choose forget_bias",
        ),
        (
            ["--model.cell-options", "forget_bias", "high"],
            "option 'forget_bias' of cell 'lstm' must be float, got 'high'",
        ),
        (["--model.cell", "gru", "--model.cell-options", "a", "1"], "cell 'gru'; it takes none"),
        (["--model.attention-options", "a", "1"], "attention 'additive'; it takes none"),
        (["--model.pooling-options", "a", "1"], "pooling 'attention'; it takes none"),
        (["--train.objective-options", "a", "1"], "objective 'cross_entropy'; it takes none"),
        (["--model.hiden-size", "3"], "--model.hiden-size"),
        (["--model.hidden-size", "three"], "--model.hidden-size"),
        (["--model.hidden-size", "0"], "model.hidden_size must be above 0, got 0"),
        (["--optim.schedule", "cosin"], "--optim.schedule"),
        (["--devices", "3"], "--devices must be above 0 and divide each group of 8 reviews"),
        (["--devices", "8"], "--devices must be at most the 4 of cpu, got 8"),
        (["--devices", "0"], "--devices must be above 0 and divide each group of 8"),
        (["--log-every-steps", "0"], "--log-every-steps must be above 0, got 0"),
        (["--data.validation-reviews", "60"], "movie_reviews has 60 training reviews"),
        (
            ["--train.each-epoch", "test", "--data.validation-reviews", "0"],
            "unknown split of movie_reviews 'test'; choose train, validation",
        ),
        (["--resume"], "holds no run to resume; leave out --resume"),
        (["--runs", ROOT / "pyproject.toml"], "cannot save"),
        (["--cache", ROOT / "pyproject.toml"], "cannot write the token cache"),
    ],
)
def test_mistake_is_told_before_anything_is_written(empty, words, says):
    assert says in error_of(train, empty, *words)
    assert list(empty.iterdir()) == [empty / "cache"]


def test_unknown_recipe_is_one_line(empty):
    assert "unknown recipe 'quickstrat'" in error_of(train, empty, recipe="quickstrat")


def test_option_of_a_cell_reaches_its_parameters(empty, monkeypatch):
    class Asked(Exception):
        pass

    def train_no_further(config, model, *more, **given):
        raise Asked(jax.jit(model.init)(jax.random.key(0)))

    monkeypatch.setattr(session, "train", train_no_further)
    with pytest.raises(Asked) as caught:
        train(empty, "--model.cell-options", "forget_bias", "3")
    [params] = caught.value.args
    bias = params["encoder"]["layers"][0]["forward"]["bias"]
    assert bias.tolist() == [0, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("words", [[], ["--seed", "3", "tutorial"]])
def test_training_without_a_recipe_in_front_lists_the_recipes(words):
    names = ", ".join(recipe_names(ROOT / "configs"))
    message = error_of(script("train"), *words)
    assert message.startswith("the recipe comes first:")
    assert message.endswith(f"choose {names}")


def test_help_without_a_recipe_lists_recipes_and_every_field_and_needs_no_jax():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import train\n"
        "try: train.main(['--help'])\n"
        "finally: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False"
    for words in ("--model.hidden-size INT", "Hidden units of one direction.", "tutorial"):
        assert words in done.stdout


def run_alone(name: str, *words: object, stdin: bytes = b"", pipe: str = ""):
    command = ["bash", "-c", f'set -o pipefail; "$@" {pipe}', "bash"]
    command += [sys.executable, ROOT / "scripts" / f"{name}.py", *words]
    return subprocess.run(map(str, command), input=stdin, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", ["quickstrat"]),
        ("train", ["quickstart", "--model.hidden-size", "three"]),
        ("train", ["quickstart", "--devices", "3"]),
        ("train", ["quickstart", "--devices", "0"]),
        ("predict", ["x" * 300]),
        ("prepare_data", ["--dataset", "imbd"]),
        ("evaluate", ["missing"]),
        ("report", ["missing"]),
    ],
)
def test_script_prints_one_line_and_leaves_with_status_two(name, words):
    finished = run_alone(name, *words)
    assert (finished.returncode, finished.stdout) == (2, b"")
    assert finished.stderr.startswith(b"error: ")
    assert finished.stderr.count(b"\n") == 1


def test_predictions_into_a_closed_pipe_are_no_traceback(done):
    finished = run_alone(
        "predict", tiny_run(done).model, stdin=b"brillo filmo\n" * 5000, pipe="| head -n 1"
    )
    assert (finished.returncode, finished.stderr) == (1, b"")
    assert json.loads(finished.stdout)["line"] == 1


# The data


def test_prepare_data_says_what_it_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sources.DATASETS, "imdb", tiny(sources.Imdb))
    assert prepare("--cache", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(f"{split:10} {size:7,} reviews" in out for split, size in SIZES.items())
    assert prepare("--cache", tmp_path) == 0
    assert "found the tokens of imdb" in capsys.readouterr().out


def test_prepare_data_told_of_a_missing_archive_is_one_line(tmp_path):
    where = ["--cache", tmp_path / "cache", "--data-dir", tmp_path / "data"]
    message = error_of(prepare, *where, "--archive", tmp_path / "no.tar.gz")
    assert "give the path of aclImdb_v1.tar.gz" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_data_set_prepared_as_tfrecord_is_one_line(tmp_path):
    folder = tmp_path / imdb.PREPARED
    folder.mkdir(parents=True)
    info = {"fileFormat": "tfrecord", "name": "imdb_reviews", "version": "1.0.0"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    message = error_of(prepare, "--cache", tmp_path / "cache", "--data-dir", tmp_path)
    assert "array_record, but is tfrecord" in message


DAMAGES = {
    "words cut short": lambda folder: cut(folder / "train.words.npy", 200),
    "words missing": lambda folder: (folder / "train.words.npy").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "meta cut short": lambda folder: cut(folder / "meta.json", 50),
    "meta of another kind": lambda folder: (folder / "meta.json").write_text("[]"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_token_cache_is_one_line(tmp_path, damage):
    folder = write_cache(tmp_path)
    TokenCache(folder)
    DAMAGES[damage](folder)
    message = error_of(prepare, "--dataset", "movie_reviews", "--cache", tmp_path)
    assert message.startswith(f"the token cache {folder} is damaged (")
    assert message.endswith("delete it and run scripts/prepare_data.py, or copy it again")


def test_full_disk_while_preparing_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.DATASETS, "movie_reviews", tiny(sources.MovieReviews))
    with full_disk(100):
        message = error_of(prepare_tokens, "movie_reviews", show=Show(), cache=tmp_path)
    assert message.startswith(f"cannot write the token cache {tmp_path}")
    assert "free some space or give another place with --cache" in message
    assert list(tmp_path.iterdir()) == []


PREPARE = """
import pathlib, sys, time
from bilstm_attn.data import sources
from bilstm_attn.data.cache import prepare_tokens
from bilstm_attn.terminal import Show

class Slow(sources.Source):
    name, version, splits = "movie_reviews", sources.MovieReviews.version, ("train",)
    def __init__(self, data_dir=None, archive=None):
        pass
    def size(self, split):
        return 1
    def read(self, split):
        meeting = pathlib.Path(sys.argv[1])
        (meeting / sys.argv[2]).touch()  # both are past the check for a cache that is there
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.01)
        yield "filmo brillo", 1

sources.DATASETS["movie_reviews"] = Slow
cache = pathlib.Path(sys.argv[3])
print(prepare_tokens("movie_reviews", show=Show(), cache=cache).meta["splits"])
"""


def test_two_processes_preparing_at_once_both_get_the_tokens(tmp_path):
    (tmp_path / "meeting").mkdir()
    command = [sys.executable, "-c", PREPARE, tmp_path / "meeting"]
    both = [
        subprocess.Popen([*command, who, tmp_path / "cache"], stdout=-1, stderr=-1, cwd=ROOT)
        for who in "ab"
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert b"{'train': 1}" in out
    assert list((tmp_path / "cache").iterdir()) == [
        cache_folder("movie_reviews", tmp_path / "cache")
    ]


# Interrupted and continued


def same_but_for_time(one: Run, two: Run) -> None:
    """Asserts that two runs have the same parameters, optimiser state, metrics and words."""

    def measured(run: Run) -> list[dict]:
        times = ("seconds", "measure_seconds", "reviews_per_second")
        return [{key: line[key] for key in line if key not in times} for line in run.records()]

    def state(run: Run) -> str:
        return json.loads((run.checkpoints / "12/record/metadata").read_text())["state_sha256"]

    assert measured(one) == measured(two)
    assert state(one) == state(two)
    models = [load_model(run.model) for run in (one, two)]
    assert checkpoint.digest(models[0].params) == checkpoint.digest(models[1].params)
    assert models[0].vocabulary.words == models[1].vocabulary.words


def at_batch(monkeypatch, number: int, act) -> None:
    """Calls `act` when batch `number` of training from now on is read."""
    read, count = loop.read_batch, iter(range(1, 1000))

    def read_and_act(*arguments):
        if next(count) == number:
            act()
        return read(*arguments)

    monkeypatch.setattr(loop, "read_batch", read_and_act)


class Killed(BaseException):
    """Nothing in the program waits for it."""


def kill() -> None:
    raise Killed


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# Of 12 steps, 6 an epoch, metrics every 2.


@pytest.mark.parametrize("step", [3, 6, 8])
def test_interrupted_run_continues_to_the_same_bits(done, empty, monkeypatch, capsys, step):
    with monkeypatch.context() as patch:
        at_batch(patch, step, press)
        assert train(empty, "--name", "tiny") == 130
    out = capsys.readouterr().out
    assert f"stopped at step {step}; its state is saved; go on with\n  python " in out
    assert out.endswith("--resume\n")
    assert train(empty, "--name", "tiny", "--resume") == 0
    assert f"resuming at step {step}" in capsys.readouterr().out
    same_but_for_time(tiny_run(empty), tiny_run(done))


def test_run_killed_before_its_first_checkpoint_starts_again_and_says_so(
    done, empty, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        at_batch(patch, 3, kill)
        with pytest.raises(Killed):
            train(empty, "--name", "tiny")
    assert train(empty, "--name", "tiny", "--resume") == 0
    assert "no checkpoint was saved yet; starting at step 0" in capsys.readouterr().out
    same_but_for_time(tiny_run(empty), tiny_run(done))


def test_killed_run_continues_from_its_last_epoch_to_the_same_bits(done, empty, monkeypatch):
    with monkeypatch.context() as patch:
        at_batch(patch, 9, kill)
        with pytest.raises(Killed):
            train(empty, "--name", "tiny")
    run = tiny_run(empty)
    assert run.records()[-1]["step"] > 6  # lines of steps that no checkpoint holds
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "ste')
    assert train(empty, "--name", "tiny", "--resume") == 0
    same_but_for_time(run, tiny_run(done))


def test_finished_run_continued_changes_nothing(own, done, capsys):
    assert train(own, "--name", "tiny", "--resume") == 0
    assert "held-out accuracy" in capsys.readouterr().out
    same_but_for_time(tiny_run(own), tiny_run(done))


def test_damaged_checkpoint_falls_back_and_reaches_the_same_bits(own, done, capsys):
    flip(tiny_run(own).checkpoints / "12" / "state" / "manifest.ocdbt", 50)
    assert train(own, "--name", "tiny", "--resume") == 0
    caught = capsys.readouterr()
    assert "checkpoint 12 is damaged (its file state/manifest.ocdbt is not what" in caught.out
    assert "resuming at step 6" in caught.out
    assert "Traceback" not in caught.err
    same_but_for_time(tiny_run(own), tiny_run(done))


def test_checkpoints_all_damaged_are_one_error_and_the_model_stays(own):
    run = tiny_run(own)
    for step in ("6", "12"):
        flip(run.checkpoints / step / "state" / "manifest.ocdbt", 50)
    model, metrics = run.model.read_bytes(), run.metrics_file.read_bytes()
    message = error_of(train, own, "--name", "tiny", "--resume")
    assert message.startswith(f"every checkpoint in {run.checkpoints} is damaged")
    assert (run.model.read_bytes(), run.metrics_file.read_bytes()) == (model, metrics)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "holds this run already; continue it with --resume, or give --name or --seed"),
        (["--resume", "--optim.learning-rate", "0.5"], "optim.learning_rate 0.001 there, 0.5 here"),
        (["--model.hidden-size", "4"], "model.hidden_size 3 there, 4 here"),
    ],
)
def test_run_that_exists_is_left_as_it_is(own, words, says):
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    assert says in error_of(train, own, "--name", "tiny", *words)
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_mistake_in_the_data_does_not_take_the_runs_name(empty):
    too_many = ["--name", "again", "--data.validation-reviews", "60"]
    assert "ask for 61; lower one of them" in error_of(train, empty, *too_many)
    assert train(empty, "--name", "again") == 0


# Full disks and losses that are not finite


def test_full_disk_while_saving_keeps_the_checkpoint_before(done, empty, monkeypatch):
    with monkeypatch.context() as patch:
        save = checkpoint.Checkpoints.save

        def save_on_a_full_disk(self, step, *more):
            if step < 12:
                return save(self, step, *more)
            with full_disk(256):
                return save(self, step, *more)

        patch.setattr(checkpoint.Checkpoints, "save", save_on_a_full_disk)
        message = error_of(train, empty, "--name", "tiny")
    run = tiny_run(empty)
    assert message.startswith(f"cannot save {run.checkpoints / '12'}: ")
    assert "what was saved before is whole: free some space, then run again" in message
    assert train(empty, "--name", "tiny", "--resume") == 0
    assert run.records()[0] == tiny_run(done).records()[0]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["12", "6"]
    same_but_for_time(run, tiny_run(done))


def test_full_disk_while_exporting_keeps_the_model_before(own, monkeypatch):
    run = tiny_run(own)
    shutil.rmtree(run.checkpoints / "12")
    whole, size = run.model.read_bytes(), run.model.stat().st_size
    export = loop.export_model

    def export_on_a_full_disk(*arguments):
        with full_disk(size // 2):
            export(*arguments)

    monkeypatch.setattr(loop, "export_model", export_on_a_full_disk)
    message = error_of(train, own, "--name", "tiny", "--resume")
    assert message.startswith(f"cannot save {run.model}: File too large")
    assert run.model.read_bytes() == whole
    assert sorted(path.name for path in run.folder.iterdir() if "partial" in path.name) == []


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(own, done, monkeypatch):
    run = tiny_run(own)
    shutil.rmtree(run.checkpoints / "12")
    whole = run.model.read_bytes()
    with monkeypatch.context() as patch:
        read = loop.read_batch
        at_step = iter(range(7, 13))

        def read_badly(*arguments):
            bad = np.float32("nan" if next(at_step) == 9 else 1)
            return tuple(group._replace(weight=bad * group.weight) for group in read(*arguments))

        patch.setattr(loop, "read_batch", read_badly)
        message = error_of(train, own, "--name", "tiny", "--resume")
    assert "not finite at step 9 (epoch 2)" in message
    assert "lower --optim.learning-rate" in message
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["6"]
    assert run.model.read_bytes() == whole
    assert train(own, "--name", "tiny", "--resume") == 0
    same_but_for_time(run, tiny_run(done))


def test_learning_rate_far_too_high_exports_no_epoch_and_says_the_step(empty):
    # One step an epoch: nothing in its loss or gradient shows what the step made of the parameters.
    fields = {"optim__learning_rate": 1e38, "data__batch_size": 48, "model__dense_size": 16}
    message = error_of(train, empty, "--name", "far", "--devices", 1, **fields)
    assert "not finite at step 1 (epoch 1)" in message
    run = tiny_run(empty, "far")
    assert not run.model.exists()
    assert list(run.checkpoints.iterdir()) == []


# Asking about a run


def test_evaluation_measures_and_saves_each_prediction(own, capsys):
    where = ["--cache", own / "cache"]
    assert evaluate(tiny_run(own).folder, "--split", "validation", *where) == 0
    [epoch] = [line for line in tiny_run(own).records() if line.get("epoch") == 2][-1:]
    out = capsys.readouterr().out
    assert f"accuracy           {epoch['validation_accuracy']:.6f}\n" in out
    assert f"loss               {epoch['validation_loss']:.6f}\n" in out
    lines = tiny_run(own).predictions("validation").read_text().splitlines()
    right = [(line["probability"] > 0.5) == line["label"] for line in map(json.loads, lines)]
    assert (len(right), np.mean(right)) == (12, epoch["validation_accuracy"])


@pytest.mark.parametrize("split", ["test", "tset"])
def test_split_that_does_not_exist_lists_those_that_do(own, split):
    message = error_of(evaluate, tiny_run(own).folder, "--split", split, "--cache", own / "cache")
    assert message.startswith(f"unknown split of movie_reviews {split!r}; choose train, validation")


def test_split_without_labels_is_an_error(empty):
    fields = {"data__dataset": "imdb", "train__epochs": 1}
    assert train(empty, "--name", "all", **fields) == 0
    folder = tiny_run(empty, "all").folder
    message = error_of(evaluate, folder, "--split", "unlabelled", "--cache", empty / "cache")
    assert message == "split 'unlabelled' has no labels to measure against; give --split test"
    final = tiny_run(empty, "all").records()[-1]
    assert (final["kind"], final["split"]) == ("final", "test")
    assert len(tiny_run(empty, "all").predictions("test").read_text().splitlines()) == 20


@pytest.mark.parametrize("ask", [evaluate, lambda run: predict(run, "brillo")])
def test_run_without_a_finished_epoch_is_one_line(own, ask):
    tiny_run(own).model.unlink()
    says = "has no model.safetensors yet: no epoch has ended; continue the run with --resume"
    assert says in error_of(ask, tiny_run(own).folder)


@pytest.mark.parametrize("ask", [evaluate, lambda run: predict(run, "brillo")])
def test_folder_that_is_no_run_is_one_line(tmp_path, ask):
    assert error_of(ask, tmp_path).startswith(f"{tmp_path} is not a run's folder")


@pytest.mark.parametrize("ask", [evaluate, lambda run: predict(run, "brillo")])
@pytest.mark.parametrize("damage", ["flipped", "cut short"])
def test_damaged_model_is_one_line(own, ask, damage):
    run = tiny_run(own)
    size = run.model.stat().st_size
    flip(run.model, size - 9) if damage == "flipped" else cut(run.model, size - 9)
    message = error_of(ask, run.folder)
    assert message.startswith(f"{run.model} is ")
    assert ("damaged" if damage == "flipped" else "not a model") in message


def test_table_of_a_run_comes_from_its_metrics(own, capsys):
    assert report(own / "runs") == 0
    [row] = capsys.readouterr().out.splitlines()[3:]
    accuracy = tiny_run(own).records()[-1]["validation_accuracy"]
    assert row.startswith(f"| tiny | validation, epoch 2 | 1 | {100 * accuracy:.2f} % |")


def test_table_of_a_run_with_damaged_metrics_is_one_line(own):
    flip(tiny_run(own).metrics_file, 0)
    assert error_of(report, own / "runs").startswith("line 1 of ")
