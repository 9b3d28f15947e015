"""The study command: cached results, the report, bad input."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_run import error_of, load_script, tiny_run, train

from bilstm_attn.explain.agreement import Agreement, kendall
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.nn.tasks import make_task
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.studies.attention_as_explanation.auxiliary_models import furthest_adversary
from bilstm_attn.studies.attention_as_explanation.figures import label_points
from bilstm_attn.studies.attention_as_explanation.measurements import (
    AttentionMeasures,
    AttributionMeasures,
)
from bilstm_attn.studies.attention_as_explanation.report import PUBLISHED, as_html, markdown
from bilstm_attn.studies.attention_as_explanation.result_cache import ResultCache
from bilstm_attn.studies.attention_as_explanation.study_result import (
    UNIFORM,
    ModelComparison,
    StudyResult,
)
from bilstm_attn.training.run_dir import RunDir

study = load_script("study_attention")
EXAMPLES = 12
RESULTS = {
    "attention",
    "attributions-5-part-1",
    "reference-loops",
    "other-seed,-seed1",
    "other-seed,-seed2",
    "uniform-attention",
    "frozen-attention",
    "perceptron,-uniform-attention",
    "perceptron,-trained-attention",
    "perceptron,-base-model's-attention",
    "perceptron-guided-by-adversary",
    "adversary-0",
    "adversary-0.1",
}


@pytest.fixture(scope="module")
def studied(trained, tmp_path_factory):
    """A folder with a run of three seeds, one of them studied; copy before changing it."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "cache").symlink_to(trained / "cache")
    for seed in range(3):
        fields = {"data__dataset": "imdb", "train__epochs": 1, "model__dense_size": 0}
        assert train(folder, "--name", "tiny", "--seed", seed, **fields) == 0
    assert call(folder) == 0
    return folder


def report_text(folder) -> str:
    return (folder / "report" / "report.md").read_text()


def call(folder, *more):
    options = ["--limit", EXAMPLES, "--attribution-examples", 5, "--strengths", 0, 0.1]
    paths = ["--cache", folder / "cache", "--out", folder / "report"]
    return study(tiny_run(folder).folder, *options, "--epochs", 1, *paths, *more)


def cache_of(folder):
    (cache,) = (tiny_run(folder).folder / "study").iterdir()
    return cache


def results_of(folder) -> dict:
    """Returns every cached result, by its name without digests and epochs."""
    paths = cache_of(folder).glob("*.json")
    results = {path.stem: json.loads(path.read_bytes())["result"] for path in paths}
    suffixes = (
        r"(?<=seed\d)-.*|(?<=guided-by-adversary)-.*|(-from-base)?-1-epochs|(?<=attributions)-.{8}"
    )
    return {re.sub(suffixes, "", name): result for name, result in results.items()}


@pytest.mark.slow
def test_every_result_is_cached_and_covers_the_studied_examples(studied):
    results = results_of(studied)
    assert set(results) == RESULTS
    assert len(results["attention"]["permutation"]) == EXAMPLES
    for name in RESULTS - {"attention", "attributions-5-part-1", "reference-loops"}:
        _, accuracy, change, divergences = results[name]
        assert 0 <= accuracy <= 1
        assert 0 < change <= 1
        # Accuracy is a count of examples, the change of probability is not.
        correct, total_change = accuracy * EXAMPLES, change * EXAMPLES
        assert correct == pytest.approx(round(correct), abs=1e-9)
        assert total_change != pytest.approx(round(total_change), abs=1e-9)
        if "base-model's" in name or "guided-by-adversary" in name:
            assert divergences is None  # the attention is another model's
        else:
            assert len(divergences) == EXAMPLES
            assert -1e-6 <= min(divergences) <= max(divergences) <= np.log(2) + 1e-6
    measures = results["attributions-5-part-1"]
    assert measures["names"] == list(ATTRIBUTIONS)
    count = len(ATTRIBUTIONS)
    assert np.shape(measures["faithfulness"]) == (count, 4, 5)
    assert np.shape(measures["agreements"]) == (count * (count - 1) / 2, 3, 5)


@pytest.mark.slow
def test_report_shows_the_cached_results(studied):
    folder, results = studied / "report", results_of(studied)
    text = (folder / "report.md").read_text()
    for name, published in PUBLISHED.items():
        assert f"| {name} | {published} |" in text
    taus = np.array(results["attention"]["agreements"]["attention, gradient"][0], float)
    assert f"| {np.nanmean(taus):.3f}".replace("0.", ".") in text
    adversary = results["adversary-0.1"]
    divergence = np.mean(adversary[3])
    cells = adversary[1], divergence, adversary[2]
    assert f"| {adversary[0]} | {' | '.join(f'{cell:.3f}' for cell in cells)} |" in text
    pictures = re.findall(r"\]\((.+?\.png)\)", text)
    assert len(pictures) == 5
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert page.count("src=") == 5  # nothing else is loaded
    assert "<td>" in page


@pytest.mark.slow
def test_studied_examples_are_those_drawn_by_seed(studied):
    logits = np.array(results_of(studied)["attention"]["logits"])
    np.testing.assert_allclose(sigmoid(logits), predicted(studied, 0), atol=1e-6)


def run_of(folder, seed):
    return RunDir(tiny_run(folder).folder.with_name(f"seed{seed}"))


def predicted(folder, seed):
    """Returns the probabilities in the run's own predictions, for the studied examples."""
    text = run_of(folder, seed).predictions("test").read_text()
    every = np.array([json.loads(line)["probability"] for line in text.splitlines()])
    return every[np.sort(numpy_generator(0, "examine").permutation(len(every))[:EXAMPLES])]


@pytest.mark.slow
def test_seeds_evaluated_together_equal_each_seeds_own_predictions(studied):
    base, results = predicted(studied, 0), results_of(studied)
    words = {seed: load_model(run_of(studied, seed).model).vocabulary.words for seed in (1, 2)}
    assert words[1] != words[2]
    for seed in words:
        _, _, change, _ = results[f"other-seed,-seed{seed}"]
        assert change == pytest.approx(abs(predicted(studied, seed) - base).mean(), abs=2e-6)


@pytest.mark.slow
def test_cached_results_are_not_computed_again(studied, tmp_path, capsys):
    shutil.copytree(studied, tmp_path / "own", symlinks=True)
    (cache_of(tmp_path / "own") / "uniform-attention-1-epochs.json").unlink()
    capsys.readouterr()
    assert call(tmp_path / "own") == 0
    output = capsys.readouterr().out
    assert "training uniform attention" in output
    assert output.count("training ") == 1
    resumed, original = (
        (folder / "report" / "report.md").read_text().split("### Time")[0]
        for folder in (tmp_path / "own", studied)
    )
    assert resumed == original


@pytest.mark.slow
def test_adversaries_are_cached_as_exported_models(studied):
    for strength in ("0", "0.1"):
        adversary = load_model(
            cache_of(studied) / f"adversary-{strength}-from-base-1-epochs.safetensors"
        )
        assert adversary.config.name == f"tiny-adversary-{strength}-from-base-1-epochs"


def trade_off_of(points):
    return [
        (strength, ModelComparison("adversary", 0.9, change, [divergence]))
        for strength, change, divergence in points
    ]


def test_furthest_adversary_is_chosen_among_those_with_similar_predictions():
    points = [(0.0, 0.01, 0.1), (1.0, 0.05, 0.3), (2.0, 0.4, 0.6)]
    trade_off = trade_off_of(points)
    assert furthest_adversary(trade_off, within=0.05) == 1
    assert furthest_adversary(trade_off, within=1.0) == 2
    assert furthest_adversary(trade_off, within=0.001) == 0  # none qualifies: the closest


def test_strengths_with_close_points_share_a_label():
    points = [(0.0, 0.1, 0.3), (0.001, 0.101, 0.301), (0.01, 0.1, 0.4), (0.1, 0.2, 0.4)]
    expected = [((0.3, 0.1), "λ 0, 0.001"), ((0.4, 0.1), "λ 0.01"), ((0.4, 0.2), "λ 0.1")]
    assert label_points(trade_off_of(points)) == expected
    assert label_points(trade_off_of([(0.0, 0.0, 0.0)])) == [((0.0, 0.0), "λ 0")]


@pytest.mark.slow
def test_other_adversary_epochs_train_only_adversaries(studied, tmp_path, capsys):
    shutil.copytree(studied, tmp_path / "own", symlinks=True)
    capsys.readouterr()
    assert call(tmp_path / "own", "--adversary-epochs", 2, "--strengths", 0) == 0
    output = capsys.readouterr().out
    assert "training adversary, λ 0" in output
    assert output.count("training ") == 2  # and the perceptron that it guides
    assert "adversaries for 2, starting from the base model" in report_text(tmp_path / "own")


@pytest.mark.slow
def test_zero_epochs_train_no_auxiliary_model(studied, tmp_path, capsys):
    shutil.copytree(studied, tmp_path / "own", symlinks=True)
    capsys.readouterr()
    assert call(tmp_path / "own", "--epochs", 0, "--strengths", 1) == 0
    assert "training" not in capsys.readouterr().out
    report = report_text(tmp_path / "own")
    assert "other seed, seed1" in report  # compared all the same
    assert "adversary, λ" not in report


def report_of(change: float = 0.4, errors: tuple[float, ...] = (0.0,)) -> str:
    """Returns the report of a model with this adversary's change and completeness errors."""
    values, agreement = np.array([0.5]), Agreement(np.array([np.nan]), np.array([np.nan]))
    pairs = ("attention, gradient", "attention, leave one out", "gradient, leave one out")
    attention = AttentionMeasures(*[values] * 4, dict.fromkeys(pairs, agreement), {})
    trade_off = trade_off_of([(0.0, change, 0.3)])
    uniform = ModelComparison(UNIFORM, 0.9, 0.1, [0.2])
    seconds = {"attention": 1.0, "attributions 1": 2.0}
    attributions = AttributionMeasures({}, {}, np.array(errors))
    results = attention, attributions, {}, [uniform], trade_off, seconds
    result = StudyResult("a|b", "description", make_task("binary"), np.array([1]), *results)
    return markdown([result], {"a|b": {}})


def test_report_notes_if_no_adversary_matches_the_predictions():
    note = "No adversary matches the base model's predictions"
    assert note in report_of(change=0.4)
    assert note not in report_of(change=0.05)
    assert "| published | a\\|b |" in report_of()


def test_report_gives_the_completeness_errors_90th_percentile_and_maximum():
    errors = (*map(float, range(10)), 70.0)
    report = report_of(errors=errors)
    assert "Means over 11 examples" in report
    assert "90th percentile 9, maximum 70." in report


def test_markup_in_a_name_is_escaped():
    page = as_html("# a <img src=x onerror=alert(1)>\n\n| a |\n|---|\n| <b>b</b> |\n", {})
    assert "<img" not in page
    assert "<b>" not in page
    assert "<td>&lt;b&gt;b&lt;/b&gt;</td>" in page


def test_result_is_computed_once(tmp_path):
    calls, cache = [], ResultCache(tmp_path / "new")
    for _ in range(2):
        assert cache.get("a result", lambda: calls.append(0) or [1.5, None]) == [1.5, None]
    assert len(calls) == 1


def test_tau_of_one_token_is_nan_and_not_significant():
    agreement = kendall(np.ones((1, 3)), np.ones((1, 3)), np.array([1]))
    assert np.isnan(agreement.taus).all()
    assert agreement.significant == 0


@pytest.mark.slow
def test_seeds_with_another_config_are_skipped_with_a_line(studied, tmp_path, capsys):
    folder = tmp_path / "own"
    shutil.copytree(studied, folder, symlinks=True)
    for seed in (1, 2):
        shutil.rmtree(run_of(folder, seed).folder)
    fields = {"data__dataset": "imdb", "train__epochs": 1, "model__dense_size": 3}
    assert train(folder, "--name", "tiny", "--seed", 1, **fields) == 0
    capsys.readouterr()
    assert call(folder) == 0
    assert "seed1: its config differs (model.dense_size" in capsys.readouterr().out
    assert "There is no finished run of this recipe with another seed." in report_text(folder)


def test_damaged_result_is_one_line(tmp_path):
    for damaged in ("{", "[]", '{"result": 1}'):
        (tmp_path / "result.json").write_text(damaged)
        message = error_of(ResultCache(tmp_path).get, "result", lambda: 0)
        assert message.endswith("result.json is damaged; delete it to compute it again")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--seed", "-1"], "seed must be at least 0 and below 2**32, got -1"),
        (["--attribution-examples", "0"], "--attribution-examples must be above 0, got 0"),
        (["--epochs", "-1"], "--epochs must be at least 0, got -1"),
        (["--adversary-epochs", "0"], "--adversary-epochs must be above 0, got 0"),
        (["--strengths", "-1"], "--strengths must be finite and at least 0, got -1.0"),
        ([], "movie_reviews has no test split to study"),
    ],
)
def test_mistake_is_one_line(trained_copy, arguments, message):
    assert message in error_of(
        study, tiny_run(trained_copy).folder, *arguments, "--cache", trained_copy / "cache"
    )


@pytest.mark.slow
def test_run_without_attention_is_refused(untrained):
    assert train(untrained, "--name", "tiny", model__pooling="max", train__epochs=1) == 0
    message = error_of(study, tiny_run(untrained).folder, "--cache", untrained / "cache")
    assert "has no attention to study: its pooling is 'max'" in message


def test_runs_with_equal_names_are_refused(trained_copy):
    folder = tiny_run(trained_copy).folder
    assert "run names must be distinct, got tiny, tiny" in error_of(study, folder, folder)


def test_missing_run_is_one_line(tmp_path):
    assert "give at least one run" in error_of(study)
    assert str(tmp_path) in error_of(study, tmp_path)
