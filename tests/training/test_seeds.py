"""Several seeds: taking turns with one compilation, or vmapped in one program."""

import shutil
import signal

import numpy as np
import pytest
from process_group import digests, losses
from test_resume import Killed, before_step, kill, send
from tiny_run import error_of, train

from bilstm_attn.training.checkpoint import Checkpoints
from bilstm_attn.training.run_dir import RunDir

MODES = {"turns": [], "vmapped": ["--vmap-seeds"]}


def runs(folder, name="tiny", seeds=3) -> list[RunDir]:
    return [RunDir(folder / "runs" / name / f"seed{seed}") for seed in range(seeds)]


def train_seeds(folder, mode: str, *more: object) -> int:
    return train(folder, "--name", "tiny", "--seeds", 3, *MODES[mode], *more)


@pytest.fixture(scope="module", params=MODES)
def seeds_of_mode(request, trained, tmp_path_factory):
    """Three finished seeds in a folder, and their mode; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "cache").symlink_to(trained / "cache")
    assert train_seeds(folder, request.param) == 0
    return folder, request.param


def test_two_seeds_in_turn_compile_once_and_have_the_bits_of_single_runs(
    trained, untrained, capsys
):
    assert train(untrained, "--name", "tiny", "--seeds", 2) == 0
    assert capsys.readouterr().out.count("compiled ") == 1
    assert train(untrained, "--name", "single", "--seed", 1) == 0
    first, second = runs(untrained, seeds=2)
    single = RunDir(untrained / "runs" / "single" / "seed1")
    assert digests(first) == digests(runs(trained, seeds=1)[0])
    assert digests(second) == digests(single)
    assert losses(second) == losses(single)
    assert first.environments()[0]["seeds"] == second.environments()[0]["seeds"] == 1


@pytest.mark.slow
def test_each_seed_matches_its_single_run_up_to_rounding(seeds_of_mode):
    folder, mode = seeds_of_mode
    for seed, run in enumerate(runs(folder)):
        assert train(folder, "--name", f"single{mode}", "--seed", seed) == 0
        single = RunDir(folder / "runs" / f"single{mode}" / f"seed{seed}")
        # Rounding of float32, through 12 steps of Adam.
        np.testing.assert_allclose(losses(run), losses(single), rtol=1e-4)
        assert [r["step"] for r in run.records()] == [r["step"] for r in single.records()]
        assert run.config().seed == seed
    first, second, third = map(losses, runs(folder))
    assert first != second != third


@pytest.mark.slow
def test_mean_and_standard_deviation_are_printed(seeds_of_mode, tmp_path, capsys):
    folder, mode = seeds_of_mode
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    assert train_seeds(tmp_path / "copy", mode, "--resume") == 0
    out = capsys.readouterr().out
    accuracies = [r.records()[-1]["validation_accuracy"] for r in runs(folder)]
    mean, spread = 100 * np.mean(accuracies), 100 * np.std(accuracies, ddof=1)
    assert f"accuracy over 3 seeds: {mean:.2f} % ± {spread:.2f} %" in out


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal in epoch 1", "killed between the seeds' checkpoints"])
def test_interrupted_seeds_continue_to_the_same_bits(seeds_of_mode, untrained, monkeypatch, fault):
    folder, mode = seeds_of_mode
    with monkeypatch.context() as patch:
        if fault.startswith("signal"):
            before_step(patch, 4, lambda: send(signal.SIGTERM))
            assert train_seeds(untrained, mode) == 143
        else:
            save, saved = Checkpoints.save, []

            def save_and_kill(self, step, *more):
                if len(saved) == 4:
                    kill()
                saved.append(step)
                return save(self, step, *more)

            patch.setattr(Checkpoints, "save", save_and_kill)
            with pytest.raises(Killed):
                train_seeds(untrained, mode)
    assert train_seeds(untrained, mode, "--resume") == 0
    for continued, whole in zip(runs(untrained), runs(folder), strict=True):
        assert digests(continued)[-1] == digests(whole)[-1]
        assert losses(continued) == losses(whole)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0"], "--seeds must be above 0"),
        (["--seeds", "2", "--seed", 2**32 - 1], "the last seed below 2**32"),
    ],
)
def test_seeds_out_of_range_are_refused(untrained, words, says):
    assert says in error_of(train, untrained, *words)


@pytest.mark.slow
def test_a_seed_that_was_trained_before_is_left_unchanged(untrained):
    assert train(untrained, "--name", "tiny", "--seed", 1) == 0
    message = error_of(train, untrained, "--name", "tiny", "--seeds", 3)
    assert "seed1 holds this run already" in message
    assert not (untrained / "runs" / "tiny" / "seed0").exists()
