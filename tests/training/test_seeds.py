"""Several seeds in one program: each is what it is alone, to rounding, and resumes as ever."""

import shutil
import signal

import numpy as np
import pytest
from process_group import digests, losses
from test_resume import Killed, at_batch, kill, send
from tiny_run import error_of, train

from bilstm_attn.training.checkpoint import Checkpoints
from bilstm_attn.training.run_dir import RunDir

pytestmark = pytest.mark.slow


def runs(folder, name="tiny", seeds=3) -> list[RunDir]:
    return [RunDir(folder / "runs" / name / f"seed{seed}") for seed in range(seeds)]


@pytest.fixture(scope="module")
def many(trained, tmp_path_factory):
    """A folder with three seeds, trained in one program; copy before changing it."""
    folder = tmp_path_factory.mktemp("seeds")
    (folder / "cache").symlink_to(trained / "cache")
    assert train(folder, "--name", "tiny", "--seeds", 3) == 0
    return folder


@pytest.mark.slow
def test_each_seed_is_what_it_is_alone(many, trained):
    for seed, together in enumerate(runs(many)):
        assert train(many, "--name", f"alone{seed}", "--seed", seed) == 0
        alone = RunDir(many / "runs" / f"alone{seed}" / f"seed{seed}")
        # Rounding of float32, through 12 steps of Adam.
        np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-4)
        assert [r["step"] for r in together.records()] == [r["step"] for r in alone.records()]
        assert together.config().seed == seed
    first, second, third = map(losses, runs(many))
    assert first != second != third


def test_mean_and_spread_are_printed(many, tmp_path, capsys):
    shutil.copytree(many, tmp_path / "own", symlinks=True)
    assert train(tmp_path / "own", "--name", "tiny", "--seeds", 3, "--resume") == 0
    out = capsys.readouterr().out
    accuracies = [r.records()[-1]["validation_accuracy"] for r in runs(many)]
    mean, spread = 100 * np.mean(accuracies), 100 * np.std(accuracies, ddof=1)
    assert f"accuracy over 3 seeds: {mean:.2f} % ± {spread:.2f} %" in out


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["told", "between"])
def test_interrupted_seeds_continue_to_the_same_bits(many, untrained, monkeypatch, fault):
    with monkeypatch.context() as patch:
        if fault == "told":
            at_batch(patch, 3 * 3 + 1, lambda: send(signal.SIGTERM))  # three batches a step
            assert train(untrained, "--name", "tiny", "--seeds", 3) == 143
        else:
            save, saved = Checkpoints.save, []

            def save_and_kill(self, step, *more):
                if len(saved) == 4:  # the first of three has saved its second epoch
                    kill()
                saved.append(step)
                return save(self, step, *more)

            patch.setattr(Checkpoints, "save", save_and_kill)
            with pytest.raises(Killed):
                train(untrained, "--name", "tiny", "--seeds", 3)
    assert train(untrained, "--name", "tiny", "--seeds", 3, "--resume") == 0
    for one, other in zip(runs(untrained), runs(many), strict=True):
        assert digests(one)[-1] == digests(other)[-1]
        assert losses(one) == losses(other)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0"], "--seeds must be above 0"),
        (["--seeds", "2", "--seed", 2**32 - 1], "the last seed below 2**32"),
    ],
)
def test_seeds_out_of_range_are_refused(untrained, words, says):
    assert says in error_of(train, untrained, *words)


def test_one_of_the_seeds_that_is_there_already_is_left_as_it_is(many, untrained):
    assert train(untrained, "--name", "tiny", "--seed", 1) == 0
    assert "seed1 holds this run already" in error_of(
        train, untrained, "--name", "tiny", "--seeds", 3
    )
    assert not (untrained / "runs" / "tiny" / "seed0").exists()
