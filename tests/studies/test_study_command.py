"""Examinations: what is kept, what the report says, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_run import error_of, script, tiny_run, train

from bilstm_attn.explain.agreement import Agreement, kendall
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.inference.exported import load_model
from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.studies.attention_as_explanation.auxiliary_models import furthest
from bilstm_attn.studies.attention_as_explanation.figures import label_points
from bilstm_attn.studies.attention_as_explanation.measurements import Attributions, JainWallace
from bilstm_attn.studies.attention_as_explanation.report import PUBLISHED, as_html, markdown
from bilstm_attn.studies.attention_as_explanation.result_cache import Kept
from bilstm_attn.studies.attention_as_explanation.study_result import EVEN, Examined, Trained
from bilstm_attn.training.run_dir import RunDir

examine = script("study_attention")
REVIEWS = 12
PIECES = {
    "attention",
    "attributions-5-part-1",
    "naive-loops",
    "the-recipe's-seed1",
    "the-recipe's-seed2",
    "even-attention",
    "frozen-attention",
    "perceptron,-even-attention",
    "perceptron,-its-own-attention",
    "perceptron,-the-base's-attention",
    "perceptron-of-adversary",
    "adversary-0",
    "adversary-0.1",
}


@pytest.fixture(scope="module")
def examined(done, tmp_path_factory):
    """A folder with a run of three seeds, one of which was examined; copy before changing it."""
    folder = tmp_path_factory.mktemp("examined")
    (folder / "cache").symlink_to(done / "cache")
    for seed in range(3):
        fields = {"data__dataset": "imdb", "train__epochs": 1, "model__dense_size": 0}
        assert train(folder, "--name", "tiny", "--seed", seed, **fields) == 0
    assert call(folder) == 0
    return folder


def call(folder, *more):
    given = ["--limit", REVIEWS, "--few", 5, "--strengths", 0, 0.1, "--epochs", 1]
    where = ["--cache", folder / "cache", "--out", folder / "report"]
    return examine(tiny_run(folder).folder, *given, *where, *more)


def kept(folder) -> dict:
    (own,) = (tiny_run(folder).folder / "examination").iterdir()
    found = {path.stem: json.loads(path.read_bytes())["found"] for path in own.glob("*.json")}
    # Another seed's piece is of its model, whose digest ends the name; that of attributions is of
    # them and their options.
    more = "(?<=seed.)-.*|(?<=perceptron-of-adversary)-.*|(-from-base)?-1-epochs|(?<=butions)-.{8}"
    return {re.sub(more, "", name): piece for name, piece in found.items()}


@pytest.mark.slow
def test_every_piece_is_kept_and_is_of_the_reviews_asked_about(examined):
    pieces = kept(examined)
    assert set(pieces) == PIECES
    assert len(pieces["attention"]["permutation"]) == REVIEWS
    for name in PIECES - {"attention", "attributions-5-part-1", "naive-loops"}:
        _, accuracy, change, divergences = pieces[name]
        assert 0 <= accuracy <= 1
        assert 0 < change <= 1
        # The one counts reviews, the other does not.
        right, moved = accuracy * REVIEWS, change * REVIEWS
        assert right == pytest.approx(round(right), abs=1e-9)
        assert moved != pytest.approx(round(moved), abs=1e-9)
        if "the-base's" in name or "of-adversary" in name:
            assert divergences is None  # the attention is another's
        else:
            assert len(divergences) == REVIEWS
            assert -1e-6 <= min(divergences) <= max(divergences) <= np.log(2) + 1e-6
    found = pieces["attributions-5-part-1"]
    assert found["names"] == list(ATTRIBUTIONS)
    each = len(ATTRIBUTIONS)
    assert np.shape(found["faithful"]) == (each, 4, 5)
    assert np.shape(found["alike"]) == (each * (each - 1) / 2, 3, 5)


@pytest.mark.slow
def test_report_says_what_was_found(examined):
    folder, pieces = examined / "report", kept(examined)
    text = (folder / "report.md").read_text()
    for name, published in PUBLISHED.items():
        assert f"| {name} | {published} |" in text
    taus = np.array(pieces["attention"]["agreements"]["attention, gradient"][0], float)
    assert f"| {np.nanmean(taus):.3f}".replace("0.", ".") in text
    adversary = pieces["adversary-0.1"]
    apart = np.mean(adversary[3])
    assert f"| {adversary[0]} | {adversary[1]:.3f} | {apart:.3f} | {adversary[2]:.3f} |" in text
    pictures = re.findall(r"\]\((.+?\.png)\)", text)
    assert len(pictures) == 5
    assert all((folder / one).read_bytes().startswith(b"\x89PNG") for one in pictures)
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert page.count("src=") == 5  # nothing from elsewhere
    assert "<td>" in page


@pytest.mark.slow
def test_reviews_asked_about_are_those_drawn(examined):
    logits = np.array(kept(examined)["attention"]["logits"])
    np.testing.assert_allclose(sigmoid(logits), predicted(examined, 0), atol=1e-6)


def run_of(folder, seed):
    return RunDir(tiny_run(folder).folder.with_name(f"seed{seed}"))


def predicted(folder, seed):
    """The probabilities that the run itself wrote down, of the reviews asked about."""
    text = run_of(folder, seed).predictions("test").read_text()
    every = np.array([json.loads(line)["probability"] for line in text.splitlines()])
    return every[np.sort(numpy_generator(0, "examine").permutation(len(every))[:REVIEWS])]


@pytest.mark.slow
def test_seeds_asked_together_answer_as_each_did_in_words_of_its_own(examined):
    own, pieces = predicted(examined, 0), kept(examined)
    words = {seed: load_model(run_of(examined, seed).model).vocabulary.words for seed in (1, 2)}
    assert words[1] != words[2]
    for seed in words:
        _, _, change, _ = pieces[f"the-recipe's-seed{seed}"]
        assert change == pytest.approx(abs(predicted(examined, seed) - own).mean(), abs=2e-6)


@pytest.mark.slow
def test_what_is_kept_is_not_asked_again(examined, tmp_path, capsys):
    shutil.copytree(examined, tmp_path / "own", symlinks=True)
    (own,) = (tiny_run(tmp_path / "own").folder / "examination").iterdir()
    (own / "even-attention-1-epochs.json").unlink()
    capsys.readouterr()
    assert call(tmp_path / "own") == 0
    said = capsys.readouterr().out
    assert "training even attention" in said
    assert said.count("training ") == 1
    one, other = (
        (folder / "report" / "report.md").read_text().split("### Time")[0]
        for folder in (tmp_path / "own", examined)
    )
    assert one == other


@pytest.mark.slow
def test_adversaries_are_kept_as_models(examined):
    (own,) = (tiny_run(examined).folder / "examination").iterdir()
    for strength in ("0", "0.1"):
        kept_one = load_model(own / f"adversary-{strength}-from-base-1-epochs.safetensors")
        assert kept_one.config.name == f"tiny-adversary-{strength}-from-base-1-epochs"


def test_adversary_taken_is_the_furthest_of_those_that_answer_alike():
    found = [(0.0, 0.01, 0.1), (1.0, 0.05, 0.3), (2.0, 0.4, 0.6)]
    trade_off = [(at, Trained("one", 0.9, change, [apart])) for at, change, apart in found]
    assert furthest(trade_off, within=0.05) == 1
    assert furthest(trade_off, within=1.0) == 2
    assert furthest(trade_off, within=0.001) == 0  # none does: the nearest


def test_strengths_whose_points_lie_on_each_other_share_a_label():
    found = [(0.0, 0.1, 0.3), (0.001, 0.101, 0.301), (0.01, 0.1, 0.4), (0.1, 0.2, 0.4)]
    points = [(at, Trained("one", 0.9, change, [apart])) for at, change, apart in found]
    expected = [((0.3, 0.1), "λ 0, 0.001"), ((0.4, 0.1), "λ 0.01"), ((0.4, 0.2), "λ 0.1")]
    assert label_points(points) == expected
    nothing = [(0.0, Trained("one", 0.9, 0.0, [0.0]))]
    assert label_points(nothing) == [((0.0, 0.0), "λ 0")]


@pytest.mark.slow
def test_companions_of_other_epochs_leave_the_rest_as_it_is(examined, tmp_path, capsys):
    shutil.copytree(examined, tmp_path / "own", symlinks=True)
    capsys.readouterr()
    assert call(tmp_path / "own", "--adversary-epochs", 2, "--strengths", 0) == 0
    said = capsys.readouterr().out
    assert "training adversary, λ 0" in said
    assert said.count("training ") == 2  # and the perceptron under its attention
    assert "of adversaries: 2, from base" in (tmp_path / "own" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_with_no_epochs_nothing_is_trained_beside_it(examined, tmp_path, capsys):
    shutil.copytree(examined, tmp_path / "own", symlinks=True)
    capsys.readouterr()
    assert call(tmp_path / "own", "--epochs", 0, "--strengths", 1) == 0
    assert "training" not in capsys.readouterr().out
    report = (tmp_path / "own" / "report" / "report.md").read_text()
    assert "the recipe's seed1" in report  # which is compared all the same
    assert "adversary, λ" not in report


def report_of(change: float = 0.4, errors: tuple[float, ...] = (0.0,)) -> str:
    """Returns the report of one model, by its adversary's change and completeness errors."""
    numbers, one = np.array([0.5]), Agreement(np.array([np.nan]), np.array([np.nan]))
    pairs = ("attention, gradient", "attention, leave one out", "gradient, leave one out")
    attention = JainWallace(numbers, numbers, numbers, numbers, dict.fromkeys(pairs, one), {})
    trade_off = [(0.0, Trained("adversary, λ 0", 0.6, change, [0.3]))]
    even = Trained(EVEN, 0.9, 0.1, [0.2])
    seconds = {"attention": 1.0, "attributions 1": 2.0}
    found = attention, Attributions({}, {}, np.array(errors)), {}, [even], trade_off, seconds
    return markdown([Examined("a|b", "about", np.array([1]), *found)], {"a|b": {}})


def test_adversaries_that_answer_unlike_the_base_are_said_to():
    said = "No adversary answers as the model does"
    assert said in report_of(change=0.4)
    assert said not in report_of(change=0.05)
    assert "| published | a\\|b |" in report_of()


def test_completeness_is_said_of_nine_in_ten_reviews_and_of_the_worst():
    errors = (*map(float, range(10)), 70.0)
    report = report_of(errors=errors)
    assert "Means over 11 reviews" in report
    assert "to within 9 in nine of ten reviews, 70 in the worst." in report


def test_markup_in_a_name_is_text():
    page = as_html("# a <img src=x onerror=alert(1)>\n\n| a |\n|---|\n| <b>b</b> |\n", {})
    assert "<img" not in page
    assert "<b>" not in page
    assert "<td>&lt;b&gt;b&lt;/b&gt;</td>" in page


def test_kept_piece_is_made_once(tmp_path):
    made, kept = [], Kept(tmp_path / "new")
    for _ in range(2):
        assert kept("one piece", lambda: made.append(0) or [1.5, None]) == [1.5, None]
    assert len(made) == 1


def test_tau_of_one_token_is_no_number_and_counts_as_none():
    agreement = kendall(np.ones((1, 3)), np.ones((1, 3)), np.array([1]))
    assert np.isnan(agreement.taus).all()
    assert agreement.significant == 0


@pytest.mark.slow
def test_seeds_of_another_config_are_left_out_and_said_to_be(examined, tmp_path, capsys):
    folder = tmp_path / "own"
    shutil.copytree(examined, folder, symlinks=True)
    for seed in (1, 2):
        shutil.rmtree(run_of(folder, seed).folder)
    fields = {"data__dataset": "imdb", "train__epochs": 1, "model__dense_size": 3}
    assert train(folder, "--name", "tiny", "--seed", 1, **fields) == 0
    capsys.readouterr()
    assert call(folder) == 0
    assert "seed1 is left out, of another config (model.dense_size" in capsys.readouterr().out
    assert (
        "No finished run of the recipe with another seed"
        in (folder / "report" / "report.md").read_text()
    )


def test_damaged_piece_is_one_line(tmp_path):
    for damaged in ("{", "[]", '{"found": 1}'):
        (tmp_path / "one.json").write_text(damaged)
        message = error_of(Kept(tmp_path), "one", lambda: 0)
        assert message.endswith("one.json is damaged; delete it, and it is made again")


# Bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--seed", "-1"], "seed must be at least 0 and below 2**32, got -1"),
        (["--few", "0"], "--few must be above 0, got 0"),
        (["--epochs", "-1"], "--epochs must be at least 0, got -1"),
        (["--adversary-epochs", "0"], "--adversary-epochs must be above 0, got 0"),
        (["--strengths", "-1"], "--strengths must be finite and at least 0, got -1.0"),
        ([], "movie_reviews has no test split to examine"),
    ],
)
def test_mistake_is_one_line(own, words, says):
    assert says in error_of(examine, tiny_run(own).folder, *words, "--cache", own / "cache")


@pytest.mark.slow
def test_run_without_attention_is_refused(empty):
    assert train(empty, "--name", "tiny", model__pooling="max", train__epochs=1) == 0
    message = error_of(examine, tiny_run(empty).folder, "--cache", empty / "cache")
    assert "has no attention to examine: its pooling is 'max'" in message


def test_runs_of_one_name_are_refused(own):
    folder = tiny_run(own).folder
    assert "names of their own, got tiny, tiny" in error_of(examine, folder, folder)


def test_no_run_is_a_line(tmp_path):
    assert "give at least one run" in error_of(examine)
    assert str(tmp_path) in error_of(examine, tmp_path)
