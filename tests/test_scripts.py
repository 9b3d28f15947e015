"""The command line: mistakes are one line before anything is written, and help is fast."""

import json
import os
import subprocess
import sys

import jax
import pytest
from tiny_run import FIELDS, ROOT, error_of, load_script, tiny_run, train

from bilstm_attn.config_files import recipe_names
from bilstm_attn.training import train_command


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
        (["--devices", "3"], "--devices must be above 0 and divide 4, the rows per length group"),
        (
            ["--devices", "8", "--data.batch-size", "16"],
            "--devices must be at most 4, the number of cpu devices per process, got 8",
        ),
        (["--devices", "0"], "--devices must be above 0 and divide 4, "),
        (["--log-every-steps", "0"], "--log-every-steps must be above 0, got 0"),
        (["--data.validation-examples", "60"], "movie_reviews has 60 training examples"),
        (
            ["--train.eval-split", "test", "--data.validation-examples", "0"],
            "unknown split of movie_reviews 'test'; choose train, validation",
        ),
        (["--resume"], "holds no run to resume; leave out --resume"),
        (["--runs", ROOT / "pyproject.toml"], "cannot save"),
        (["--cache", ROOT / "pyproject.toml"], "cannot write the token cache"),
    ],
)
def test_mistake_is_told_before_anything_is_written(untrained, words, says):
    assert says in error_of(train, untrained, *words)
    assert list(untrained.iterdir()) == [untrained / "cache"]


def test_unknown_recipe_is_one_line(untrained):
    assert "unknown recipe 'quickstrat'" in error_of(train, untrained, recipe="quickstrat")


def test_option_of_a_cell_reaches_its_parameters(untrained, monkeypatch):
    class Asked(Exception):
        pass

    def train_no_further(run, program, **given):
        raise Asked(jax.jit(program.model.init)(jax.random.key(0)))

    monkeypatch.setattr(train_command, "train", train_no_further)
    with pytest.raises(Asked) as caught:
        train(untrained, "--model.cell-options", "forget_bias", "3")
    [params] = caught.value.args
    bias = params["encoder"]["layers"][0]["forward"]["bias"]
    assert bias.tolist() == [0, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("words", [[], ["--seed", "3", "tutorial"]])
def test_training_without_a_recipe_in_front_lists_the_recipes(words):
    names = ", ".join(recipe_names(ROOT / "configs"))
    message = error_of(load_script("train"), *words)
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
    for words in ("--model.hidden-size INT", "Hidden units per direction.", "tutorial"):
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


def test_predictions_into_a_closed_pipe_are_no_traceback(trained):
    finished = run_alone(
        "predict", tiny_run(trained).model, stdin=b"brillo filmo\n" * 5000, pipe="| head -n 1"
    )
    assert (finished.returncode, finished.stderr) == (1, b"")
    assert json.loads(finished.stdout)["line"] == 1


@pytest.mark.slow
def test_training_in_a_process_of_its_own_uses_every_core_that_divides_a_group(untrained):
    words = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
    folders = ["--runs", untrained / "runs", "--cache", untrained / "cache", "--name", "cores"]
    script = [sys.executable, ROOT / "scripts" / "train.py", "quickstart"]
    subprocess.run([*script, *words, *folders], check=True, timeout=300)
    start = json.loads((untrained / "runs/cores/seed0/environment.json").read_text())["starts"][0]
    cores = len(os.sched_getaffinity(0))
    assert len(start["devices"]) == max(n for n in (1, 2, 4) if n <= cores)  # groups of 4 rows
