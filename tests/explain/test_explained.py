"""Explanations: what the page holds, what a browser makes of it, and what is refused."""

import base64
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import CHROMIUM, browser
from matplotlib.image import imread
from tiny_run import error_of, script, tiny, tiny_run, train

from bilstm_attn.data import sources
from bilstm_attn.data.vocabulary import clip
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.explain.explained import Explained, disagreement, read_texts
from bilstm_attn.explain.html import label_of, make_page
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.inference.predict import Predictor
from bilstm_attn.nn.model import Model

explain = script("explain")
MARKUP = "brillo </script><script>alert(1)</script> <img src=x onerror=alert(2)> filmo & dregg"


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


@pytest.fixture
def run(done):
    return tiny_run(done)


@pytest.fixture
def page(run, tmp_path) -> str:
    """The page of a text with markup in it."""
    assert explain(run.folder, MARKUP, "--out", tmp_path / "page.html") == 0
    return (tmp_path / "page.html").read_text()


# The page


def test_weights_of_the_page_are_the_models(page, run):
    (review,) = data_of(page)["reviews"]
    (predicted,) = Predictor(run.model)([MARKUP])
    words = review["pieces"][1::2][review["skipped"] :]
    assert words == [MARKUP[word.start : word.stop] for word in predicted.words]
    assert "".join(review["pieces"]) == MARKUP
    attention = [word.weight for word in predicted.words]
    np.testing.assert_allclose(review["weights"]["attention"], attention, rtol=2e-4)
    assert review["probability"] == pytest.approx(predicted.probability, abs=1e-6)
    exported = load_model(run.model)
    model = Model(exported.config.model, exported.vocabulary.size)
    examples = read_texts([MARKUP], [-1], exported)
    tokens = jnp.asarray(clip(examples.ids, exported.config.data.max_tokens))[None]
    given = tokens, jnp.asarray(examples.lengths), jax.random.split(jax.random.key(0), 1)
    for name, weights in review["weights"].items():
        (own,) = ATTRIBUTIONS[name]()(model, jax.device_put(exported.params), *given)
        np.testing.assert_allclose(weights, own, rtol=1e-3, atol=1e-6 * np.abs(own).max())
    names = [one["name"] for one in data_of(page)["attributions"]]
    assert names == list(review["weights"])
    assert "leave_one_out" in names


def test_markup_in_a_review_is_data(page):
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "alert(1)</script>" not in page


def test_split_gives_texts_labels_and_rows(own, capsys, monkeypatch):
    monkeypatch.setitem(sources.DATASETS, "movie_reviews", tiny(sources.DATASETS["movie_reviews"]))
    run = tiny_run(own)
    evaluate = script("evaluate")
    assert evaluate(run.folder, "--split", "validation", "--cache", own / "cache") == 0
    given = ["--split", "validation", "--limit", 5, "--cache", own / "cache"]
    assert explain(run.folder, *given) == 0
    assert f"wrote {run.folder / 'explanations.html'}" in capsys.readouterr().out
    data = data_of((run.folder / "explanations.html").read_text())
    assert len(data["reviews"]) == 5
    assert data["about"].startswith("5 reviews of movie_reviews's validation split")
    expected = {
        f"{line['row']} of validation": (line["probability"], line["label"])
        for line in map(json.loads, run.predictions("validation").read_text().splitlines())
    }
    for review in data["reviews"]:
        probability, label = expected[review["name"]]
        assert review["label"] == label
        assert review["probability"] == pytest.approx(probability, abs=2e-6)
    assert explain(run.folder, *given, "--seed", 1) == 0
    again = data_of((run.folder / "explanations.html").read_text())
    assert [one["name"] for one in again["reviews"]] != [one["name"] for one in data["reviews"]]


def many(words: int = 500, reviews: int = 50) -> list[Explained]:
    """Returns reviews as long as they are read, with weights of all digits."""
    numbers = np.random.default_rng(0)
    text = " ".join(["filmed"] * words)
    spans = [(7 * at, 7 * at + 6) for at in range(words)]
    names = ("attention", "gradient_x_input", "integrated_gradients", "leave_one_out")
    return [
        Explained(
            text=text,
            label=row % 2,
            probability=float(numbers.random()),
            spans=spans,
            read=words,
            weights={name: numbers.normal(size=words) / 1000 for name in names},
            start={},
            disagreement=float(numbers.random()),
        )
        for row in range(reviews)
    ]


def page_of(reviews: list[Explained]) -> str:
    chosen = {name: ATTRIBUTIONS[name]() for name in reviews[0].weights}
    return make_page(reviews, [str(row) for row in range(len(reviews))], chosen, about="made up")


def test_fifty_long_reviews_are_under_two_megabytes():
    assert len(page_of(many()).encode()) < 2e6


def test_disagreement_is_of_sizes():
    ones = np.array([[1.0, -2.0, 3.0, 0.0]])
    assert disagreement([ones, -ones], np.array([3])) == pytest.approx([0])
    assert disagreement([ones, 1 / (1 + abs(ones))], np.array([3])) == pytest.approx([2])
    assert np.isnan(disagreement([ones], np.array([3]))).all()
    # Even weights are left out of a review's mean, whatever the other reviews have.
    both, even = np.repeat(ones, 2, axis=0), np.stack([abs(ones[0]), np.ones(4)])
    apart = disagreement([both, -both, even], np.array([3, 3]))
    np.testing.assert_allclose(apart, [0, 0])


# In a browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
NAMES = "[...document.querySelectorAll('article h2')].map((h) => h.firstChild.textContent.slice(7))"
SHADES = "[...document.querySelectorAll('article:first-child [data-word]')].map((w) => {}).join()"
SHADES = SHADES.replace("{}", "w.style.backgroundColor")


@needs_browser
def test_page_works_in_a_browser(tmp_path, page):
    reviews = many(words=40, reviews=4)
    reviews[2] = reviews[2]._replace(text="zebra" + reviews[2].text[5:], probability=0.99, label=0)
    (tmp_path / "many.html").write_text(page_of(reviews))
    (tmp_path / "markup.html").write_text(page)
    with browser(tmp_path / "browser") as at:
        at.open((tmp_path / "many.html").as_uri())
        # The switch changes the shading, and back.
        attention = at.run(SHADES)
        at.run("document.querySelector('input[value=leave_one_out]').click()")
        left_out = at.run(SHADES)
        assert attention != left_out
        shares = [float(part) for part in re.findall(r"\* (\d?\.?\d+)\)", left_out)]
        weights = np.abs(reviews[0].weights["leave_one_out"])
        np.testing.assert_allclose(shares, weights / weights.max(), atol=0.001)
        drawn = "getComputedStyle(document.querySelector('[data-word=\"{}\"]')).backgroundColor"
        alpha = float(at.run(drawn.format(weights.argmax())).split(",")[-1].strip(" )"))
        assert alpha == pytest.approx(0.7, abs=0.005)  # it keeps colours in 8 bits
        at.run("document.querySelector('input[value=attention]').click()")
        assert at.run(SHADES) == attention
        # Search and order.
        assert at.run(NAMES) == ["0", "1", "2", "3"]
        choose = "$('order').value = '{}'; $('order').dispatchEvent(new Event('change'))"
        at.run(choose.format("error"))
        assert at.run(NAMES)[0] == "2"
        at.run(choose.format("confidence"))
        certain = [abs(one.probability - 0.5) for one in reviews]
        assert at.run(NAMES) == [str(row) for row in np.argsort(certain)[::-1]]
        at.run(choose.format("disagreement"))
        apart = [one.disagreement for one in reviews]
        assert at.run(NAMES) == [str(row) for row in np.argsort(apart)[::-1]]
        at.run("$('search').value = 'Zebra'; $('search').dispatchEvent(new Event('input'))")
        assert at.run(NAMES) == ["2"]
        assert at.run("$('count').textContent") == "1 of 4 reviews"
        # A word under the pointer tells its weights, as exact as they are in the page.
        over = "new PointerEvent('pointerover', {bubbles: true})"
        at.run(f"document.querySelector('[data-word=\"3\"]').dispatchEvent({over})")
        told = at.run("[...$('tip').querySelectorAll('tr')].map((r) => r.innerText.split('\\t'))")
        assert [name for name, _ in told] == [label_of(name) for name in reviews[2].weights]
        for (_, shown), weights in zip(told, reviews[2].weights.values(), strict=True):
            assert float(shown) == pytest.approx(weights[3], rel=1e-4)
        # Markup is shown, not run.
        at.open((tmp_path / "markup.html").as_uri() + "#by=leave_one_out&theme=dark")
        assert at.run("document.querySelector('.text').textContent") == MARKUP
        assert at.run("document.querySelectorAll('img').length") == 0
        assert at.run("document.querySelector('input:checked').value") == "leave_one_out"
        assert at.run("document.documentElement.dataset.theme") == "dark"
        assert at.errors == []
        assert all(address.startswith("file://") for address in at.requests)
        picture = base64.b64decode(at.ask("Page.captureScreenshot")["data"])
        assert picture.startswith(b"\x89PNG")


# Other forms


def test_terminal_lists_the_strongest_words(run, capsys):
    assert explain(run.folder, "brillo filmo dregg", "--format", "terminal") == 0
    about, *said = capsys.readouterr().out.splitlines()
    assert "Integrated gradients add up to the logit's change to within" in about
    assert said[0].startswith("review from the command line: ")
    assert [line.split(":")[0] for line in said[1:]] == [
        "attention",
        "gradient_x_input",
        "integrated_gradients",
        "leave_one_out",
    ]
    assert all("brillo" in line and "dregg" in line for line in said[1:])


def test_json_has_a_line_a_review(run, tmp_path):
    out = tmp_path / "lines.jsonl"
    given = ["--format", "json", "--out", out, "--attributions", "random", "gradient"]
    assert explain(run.folder, "brillo filmo dregg", *given) == 0
    (line,) = map(json.loads, out.read_text().splitlines())
    assert list(line["weights"]) == ["random", "gradient"]
    assert len(line["weights"]["gradient"]) == 3


def test_png_is_a_picture_shaded_by_the_attribution(run, tmp_path):
    pictures = []
    for name in ("random", "gradient"):
        out = ("--format", "png", "--attributions", name, "--out", tmp_path / f"{name}.png")
        assert explain(run.folder, "a $ brillo filmo", *out) == 0
        pictures.append(imread(tmp_path / f"{name}.png"))
    one, other = (picture[85:] for picture in pictures)  # below the title, which has the name
    assert one.shape == other.shape
    assert (one != other).any()
    assert one.min() < 0.5 < one.max()


# Bad input


def test_review_of_one_word_and_of_twenty_thousand(run, tmp_path):
    out = tmp_path / "page.html"
    assert explain(run.folder, "brillo", "--out", out) == 0
    (review,) = data_of(out.read_text())["reviews"]
    assert review["pieces"] == ["", "brillo", ""]
    assert len(review["weights"]["leave_one_out"]) == 1
    assert explain(run.folder, "brillo " * 20_000, "--out", out) == 0
    (review,) = data_of(out.read_text())["reviews"]
    assert review["skipped"] == 20_000 - 12
    assert review["start"] is None
    assert len(review["weights"]["attention"]) == 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["..."], "the text is empty; give at least one word"),
        (["quixotic"], "the model knows none of the text's 1 words"),
        (["brillo", "--attributions", "atention"], "(did you mean 'attention'?)"),
        (["--seed", "-1"], "seed must be at least 0 and below 2**32, got -1"),
        (["brillo", "--format", "terminal", "--out", "x"], "--format terminal writes no file"),
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--limit", "11", "--format", "png"], "--format png draws 10 reviews at most, got"),
        (["--split", "tset"], "unknown split of movie_reviews 'tset'; choose train, validation"),
        (["--split", "test"], "unknown split of movie_reviews 'test'"),
    ],
)
def test_mistake_is_one_line(own, words, says):
    assert says in error_of(explain, tiny_run(own).folder, *words, "--cache", own / "cache")


@pytest.mark.slow
def test_run_without_attention_says_what_is_shown(empty, capsys):
    assert train(empty, "--name", "tiny", model__pooling="max", train__epochs=1) == 0
    run, out = tiny_run(empty), empty / "page.html"
    assert explain(run.folder, "brillo filmo", "--out", out) == 0
    assert "This model has no attention: its pooling is max." in capsys.readouterr().out
    data = data_of(out.read_text())
    assert data["note"].startswith("This model has no attention")
    assert "attention" not in [one["name"] for one in data["attributions"]]
    message = error_of(explain, run.folder, "brillo", "--attributions", "attention")
    assert message.startswith("the model has no attention to show: its pooling is 'max'; choose")


def test_model_of_another_version_is_refused(own):
    run = tiny_run(own)
    data = run.model.read_bytes()
    run.model.write_bytes(data.replace(b"bilstm_attn 1", b"bilstm_attn 0"))
    assert "must have the format" in error_of(explain, run.folder, "brillo")


def test_split_that_is_not_prepared_is_one_line(own):
    params, config, vocabulary = load_model(tiny_run(own).model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="imdb"))
    export_model(own / "of_imdb.safetensors", params, config, vocabulary)
    empty = ["--cache", own / "nothing", "--data-dir", own / "nothing"]
    message = error_of(explain, own / "of_imdb.safetensors", *empty, "--archive", own / "no.tar.gz")
    assert str(own / "no.tar.gz") in message


def test_texts_that_are_not_those_of_the_tokens_are_refused(own):
    # The tiny reviews' tokens lie under the real data set's name, and its own texts are others.
    run = tiny_run(own)
    message = error_of(explain, run.folder, "--split", "validation", "--cache", own / "cache")
    assert "holds other texts here" in message
