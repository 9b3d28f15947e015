"""The explain command: the HTML page, its behaviour in a browser, other formats, bad input."""

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
from tiny_run import error_of, load_script, tiny, tiny_run, train

from bilstm_attn.data import sources
from bilstm_attn.data.vocabulary import clip
from bilstm_attn.explain.attribution import ATTRIBUTIONS
from bilstm_attn.explain.explanation import Explanation, disagreement, encode_texts
from bilstm_attn.explain.html import label_of, make_page
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.inference.predict import Predictor
from bilstm_attn.nn.model import Model

explain = load_script("explain")
MARKUP = "brillo </script><script>alert(1)</script> <img src=x onerror=alert(2)> filmo & dregg"


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


@pytest.fixture
def run(trained):
    return tiny_run(trained)


@pytest.fixture
def page(run, tmp_path) -> str:
    """The page of a text that contains markup."""
    assert explain(run.folder, MARKUP, "--out", tmp_path / "page.html") == 0
    return (tmp_path / "page.html").read_text()


# The page


def test_page_contains_the_words_probability_and_weights_of_the_model(page, run):
    (text,) = data_of(page)["texts"]
    (predicted,) = Predictor(run.model)([MARKUP])
    words = text["pieces"][1::2][text["skipped"] :]
    assert words == [MARKUP[word.start : word.stop] for word in predicted.words]
    assert "".join(text["pieces"]) == MARKUP
    attention = [word.weight for word in predicted.words]
    np.testing.assert_allclose(text["weights"]["attention"], attention, rtol=2e-4)
    assert text["probability"] == pytest.approx(predicted.probability, abs=1e-6)
    exported = load_model(run.model)
    model = Model(exported.config.model, exported.vocabulary.size)
    examples = encode_texts([MARKUP], [-1], exported)
    tokens = jnp.asarray(clip(examples.ids, exported.config.data.max_tokens))[None]
    inputs = tokens, jnp.asarray(examples.lengths), jax.random.split(jax.random.key(0), 1)
    for name, weights in text["weights"].items():
        (expected,) = ATTRIBUTIONS[name]()(model, jax.device_put(exported.params), *inputs)
        atol = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(weights, expected, rtol=1e-3, atol=atol)
    names = [attribution["name"] for attribution in data_of(page)["attributions"]]
    assert names == list(text["weights"])
    assert "leave_one_out" in names


def test_markup_in_a_text_is_escaped(page):
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "alert(1)</script>" not in page


def test_examples_of_a_split_have_their_texts_labels_and_rows(trained_copy, capsys, monkeypatch):
    monkeypatch.setitem(sources.DATASETS, "movie_reviews", tiny(sources.DATASETS["movie_reviews"]))
    run = tiny_run(trained_copy)
    evaluate = load_script("evaluate")
    assert evaluate(run.folder, "--split", "validation", "--cache", trained_copy / "cache") == 0
    options = ["--limit", 5, "--cache", trained_copy / "cache"]  # no test split: validation
    assert explain(run.folder, *options) == 0
    assert f"wrote {run.folder / 'explanations.html'}" in capsys.readouterr().out
    data = data_of((run.folder / "explanations.html").read_text())
    assert len(data["texts"]) == 5
    assert data["about"].startswith("5 examples of movie_reviews's validation split")
    expected = {
        f"{line['row']} of validation": (line["probability"], line["label"])
        for line in map(json.loads, run.predictions("validation").read_text().splitlines())
    }
    for text in data["texts"]:
        probability, label = expected[text["name"]]
        assert text["label"] == label
        assert text["probability"] == pytest.approx(probability, abs=2e-6)
    assert explain(run.folder, *options, "--split", "validation", "--seed", 1) == 0
    with_other_seed = data_of((run.folder / "explanations.html").read_text())
    assert [text["name"] for text in with_other_seed["texts"]] != [
        text["name"] for text in data["texts"]
    ]


def random_explanations(words: int = 500, texts: int = 50) -> list[Explanation]:
    """Returns explanations of untruncated texts, with random weights of full precision."""
    generator = np.random.default_rng(0)
    probabilities = generator.random(texts)
    text = " ".join(["filmed"] * words)
    spans = [(7 * word, 7 * word + 6) for word in range(words)]
    names = ("attention", "gradient_x_input", "integrated_gradients", "leave_one_out")
    return [
        Explanation(
            text=text,
            label=row % 2,
            predicted=int(probabilities[row] > 0.5),
            probability=float(probabilities[row]),
            label_names=("negative", "positive"),
            spans=spans,
            words_read=words,
            weights={name: generator.normal(size=words) / 1000 for name in names},
            start={},
            disagreement=float(generator.random()),
        )
        for row in range(texts)
    ]


def page_of(explanations: list[Explanation]) -> str:
    attributions = {name: ATTRIBUTIONS[name]() for name in explanations[0].weights}
    names = [str(row) for row in range(len(explanations))]
    return make_page(explanations, names, attributions, about="random")


def test_page_of_fifty_long_texts_is_under_two_megabytes():
    assert len(page_of(random_explanations()).encode()) < 2e6


def test_disagreement_compares_magnitudes_and_ignores_uniform_weights():
    ones = np.array([[1.0, -2.0, 3.0, 0.0]])
    assert disagreement([ones, -ones], np.array([3])) == pytest.approx([0])
    assert disagreement([ones, 1 / (1 + abs(ones))], np.array([3])) == pytest.approx([2])
    assert np.isnan(disagreement([ones], np.array([3]))).all()
    # Uniform weights of a row are excluded from the mean of that row, not from other rows.
    both, uniform = np.repeat(ones, 2, axis=0), np.stack([abs(ones[0]), np.ones(4)])
    disagreements = disagreement([both, -both, uniform], np.array([3, 3]))
    np.testing.assert_allclose(disagreements, [0, 0])


# In a browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
NAMES = "[...document.querySelectorAll('article h2')].map((h) => h.firstChild.textContent.slice(5))"
SHADES = "[...document.querySelectorAll('article:first-child [data-word]')].map((w) => {}).join()"
SHADES = SHADES.replace("{}", "w.style.backgroundColor")


@needs_browser
def test_page_can_be_shaded_searched_and_sorted_in_a_browser(tmp_path, page):
    entries = random_explanations(words=40, texts=4)
    zebra = {"text": "zebra" + entries[2].text[5:], "label": 0}
    entries[2] = entries[2]._replace(probability=0.99, predicted=1, **zebra)
    (tmp_path / "random.html").write_text(page_of(entries))
    (tmp_path / "markup.html").write_text(page)
    with browser(tmp_path / "browser") as tab:
        tab.open((tmp_path / "random.html").as_uri())
        # Selecting an attribution changes the shading; selecting the first restores it.
        attention = tab.run(SHADES)
        tab.run("document.querySelector('input[value=leave_one_out]').click()")
        left_out = tab.run(SHADES)
        assert attention != left_out
        intensities = [float(part) for part in re.findall(r"\* (\d?\.?\d+)\)", left_out)]
        weights = np.abs(entries[0].weights["leave_one_out"])
        np.testing.assert_allclose(intensities, weights / weights.max(), atol=0.001)
        colour = "getComputedStyle(document.querySelector('[data-word=\"{}\"]')).backgroundColor"
        alpha = float(tab.run(colour.format(weights.argmax())).split(",")[-1].strip(" )"))
        assert alpha == pytest.approx(0.7, abs=0.005)  # colours have 8 bits
        tab.run("document.querySelector('input[value=attention]').click()")
        assert tab.run(SHADES) == attention
        # Searching and sorting.
        assert tab.run(NAMES) == ["0", "1", "2", "3"]
        choose = "$('order').value = '{}'; $('order').dispatchEvent(new Event('change'))"
        tab.run(choose.format("error"))
        assert tab.run(NAMES)[0] == "2"
        tab.run(choose.format("confidence"))
        confidence = [abs(entry.probability - 0.5) for entry in entries]
        assert tab.run(NAMES) == [str(row) for row in np.argsort(confidence)[::-1]]
        tab.run(choose.format("disagreement"))
        disagreements = [entry.disagreement for entry in entries]
        assert tab.run(NAMES) == [str(row) for row in np.argsort(disagreements)[::-1]]
        tab.run("$('search').value = 'Zebra'; $('search').dispatchEvent(new Event('input'))")
        assert tab.run(NAMES) == ["2"]
        assert tab.run("$('count').textContent") == "1 of 4 texts"
        # The tooltip of a word shows its weights at full precision.
        over = "new PointerEvent('pointerover', {bubbles: true})"
        tab.run(f"document.querySelector('[data-word=\"3\"]').dispatchEvent({over})")
        tip = tab.run("[...$('tip').querySelectorAll('tr')].map((r) => r.innerText.split('\\t'))")
        assert [name for name, _ in tip] == [label_of(name) for name in entries[2].weights]
        for (_, shown), weights in zip(tip, entries[2].weights.values(), strict=True):
            assert float(shown) == pytest.approx(weights[3], rel=1e-4)
        # Markup is displayed, not executed.
        tab.open((tmp_path / "markup.html").as_uri() + "#by=leave_one_out&theme=dark")
        assert tab.run("document.querySelector('.text').textContent") == MARKUP
        assert tab.run("document.querySelectorAll('img').length") == 0
        assert tab.run("document.querySelector('input:checked').value") == "leave_one_out"
        assert tab.run("document.documentElement.dataset.theme") == "dark"
        assert tab.errors == []
        assert all(address.startswith("file://") for address in tab.requests)
        picture = base64.b64decode(tab.command("Page.captureScreenshot")["data"])
        assert picture.startswith(b"\x89PNG")


# Other formats


def test_terminal_lists_the_strongest_words(run, capsys):
    assert explain(run.folder, "brillo filmo dregg", "--format", "terminal") == 0
    summary, *lines = capsys.readouterr().out.splitlines()
    assert "Largest completeness error of integrated gradients: " in summary
    assert lines[0].startswith("text from the command line: predicted ")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "attention",
        "gradient_x_input",
        "integrated_gradients",
        "leave_one_out",
    ]
    assert all("brillo" in line and "dregg" in line for line in lines[1:])


def test_json_has_one_line_per_text(run, tmp_path):
    out = tmp_path / "lines.jsonl"
    options = ["--format", "json", "--out", out, "--attributions", "random", "gradient"]
    assert explain(run.folder, "brillo filmo dregg", *options) == 0
    (line,) = map(json.loads, out.read_text().splitlines())
    assert list(line["weights"]) == ["random", "gradient"]
    assert len(line["weights"]["gradient"]) == 3


def test_png_depends_on_the_attribution(run, tmp_path):
    pictures = []
    for name in ("random", "gradient"):
        out = ("--format", "png", "--attributions", name, "--out", tmp_path / f"{name}.png")
        assert explain(run.folder, "a $ brillo filmo", *out) == 0
        pictures.append(imread(tmp_path / f"{name}.png"))
    first, second = (
        picture[85:] for picture in pictures
    )  # without the title, which contains the name
    assert first.shape == second.shape
    assert (first != second).any()
    assert first.min() < 0.5 < first.max()


# Bad input


def test_texts_of_one_word_and_of_twenty_thousand_words_are_explained(run, tmp_path):
    out = tmp_path / "page.html"
    assert explain(run.folder, "brillo", "--out", out) == 0
    (text,) = data_of(out.read_text())["texts"]
    assert text["pieces"] == ["", "brillo", ""]
    assert len(text["weights"]["leave_one_out"]) == 1
    assert explain(run.folder, "brillo " * 20_000, "--out", out) == 0
    (text,) = data_of(out.read_text())["texts"]
    assert text["skipped"] == 20_000 - 12
    assert text["start"] is None
    assert len(text["weights"]["attention"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["..."], "the text is empty; give at least one word"),
        (["quixotic"], "the model knows none of the text's 1 words"),
        (["brillo", "--attributions", "atention"], "(did you mean 'attention'?)"),
        (["--seed", "-1"], "seed must be at least 0 and below 2**32, got -1"),
        (["brillo", "--format", "terminal", "--out", "x"], "--format terminal writes no file"),
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--limit", "11", "--format", "png"], "--format png draws at most 10 texts, got"),
        (["--split", "tset"], "unknown split of movie_reviews 'tset'; choose train, validation"),
        (["--split", "test"], "unknown split of movie_reviews 'test'"),
    ],
)
def test_bad_option_is_a_one_line_error(trained_copy, arguments, message):
    assert message in error_of(
        explain, tiny_run(trained_copy).folder, *arguments, "--cache", trained_copy / "cache"
    )


@pytest.mark.slow
def test_run_without_attention_shows_the_other_attributions(untrained, capsys):
    assert train(untrained, "--name", "tiny", model__pooling="max", train__epochs=1) == 0
    run, out = tiny_run(untrained), untrained / "page.html"
    assert explain(run.folder, "brillo filmo", "--out", out) == 0
    assert "This model has no attention: its pooling is max." in capsys.readouterr().out
    data = data_of(out.read_text())
    assert data["note"].startswith("This model has no attention")
    assert "attention" not in [attribution["name"] for attribution in data["attributions"]]
    message = error_of(explain, run.folder, "brillo", "--attributions", "attention")
    assert message.startswith("the model has no attention to show: its pooling is 'max'; choose")


def test_model_of_another_version_is_an_error(trained_copy):
    run = tiny_run(trained_copy)
    data = run.model.read_bytes()
    run.model.write_bytes(data.replace(b"bilstm_attn 1", b"bilstm_attn 0"))
    assert "must have the format" in error_of(explain, run.folder, "brillo")


def test_missing_data_is_a_one_line_error_that_names_the_archive(trained_copy):
    params, config, vocabulary, _ = load_model(tiny_run(trained_copy).model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="imdb"))
    export_model(trained_copy / "of_imdb.safetensors", params, config, vocabulary)
    missing = ["--cache", trained_copy / "missing", "--data-dir", trained_copy / "missing"]
    missing += ["--archive", trained_copy / "no.tar.gz"]
    message = error_of(explain, trained_copy / "of_imdb.safetensors", *missing)
    assert str(trained_copy / "no.tar.gz") in message


def test_texts_that_differ_from_the_token_cache_are_an_error(trained_copy):
    # The tiny data set's tokens are cached under the real data set's name, whose texts differ.
    run = tiny_run(trained_copy)
    message = error_of(
        explain, run.folder, "--split", "validation", "--cache", trained_copy / "cache"
    )
    assert "the texts of movie_reviews differ from those" in message
