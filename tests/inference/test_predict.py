"""The predictor and the predict command: labels, words, weights, and one line per bad text."""

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import compile_once, error_of, flip_bit, load_script

from bilstm_attn.config import Config, DataConfig, ModelConfig
from bilstm_attn.data.vocabulary import START, Vocabulary
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.inference.predict import MAX_WORDS, Predictor, predict_lines
from bilstm_attn.nn.model import Model

WORDS = ["filmo", "actar", "brillo", "dregg", "it's"]
SMALL = ModelConfig(embedding_size=4, hidden_size=3, layers=1, attention_size=5, dense_size=9)
CONFIG = Config(data=DataConfig(max_tokens=7, bucket_edges=(3,)), model=SMALL)


def export(path: Path, **fields) -> Path:
    """Writes an untrained model with parameters large enough for distinct predictions."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(SMALL, **fields))
    vocabulary = Vocabulary(WORDS)
    params = Model(config.model, vocabulary.size).init(jax.random.key(3))
    params["embedding"] = 20 * params["embedding"]
    export_model(path, params, config, vocabulary)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    compile_once(tmp_path_factory)
    return export(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)


# Predictions


def test_prediction_equals_the_output_of_the_model(predictor, model):
    [prediction] = predictor(["Brillo filmo, unheard brillo!"])
    params, config, vocabulary, _ = load_model(model)
    params = jax.tree.map(jnp.asarray, params)
    ids = jnp.array(
        [[START, 6, 4, 2, 6]], jnp.int32
    )  # word ranks after the start token; 2: unknown word
    output = Model(config.model, vocabulary.size)(params, ids, jnp.array([5], jnp.int32))
    logit = float(output.logits[0])
    assert abs(logit) > 1e-3  # a prediction far from 0.5
    # A different padding changes the order of sums: a few units in the last place.
    assert prediction.probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
    weights = [word.weight for word in prediction.words]
    assert weights == pytest.approx(np.asarray(output.weights[0, 1:]).tolist(), rel=1e-5)
    assert prediction.label == ("positive" if logit > 0 else "negative")


def test_words_are_spans_of_the_original_text(predictor):
    text = "Brillo<br />FILMO -- it's"
    [prediction] = predictor([text])
    assert [text[w.start : w.stop] for w in prediction.words] == ["Brillo", "br", "FILMO", "it's"]
    assert (prediction.read, prediction.given) == (4, 4)


def test_long_text_is_truncated_to_its_last_words(predictor):
    text = " ".join(["dregg"] * 5 + ["brillo"] * 7)
    [prediction] = predictor([text])
    assert (prediction.read, prediction.given) == (7, 12)
    assert [text[word.start : word.stop] for word in prediction.words] == ["brillo"] * 7
    assert sum(word.weight for word in prediction.words) == pytest.approx(1, abs=1e-6)
    [truncated] = predictor([" ".join(["brillo"] * 7)])
    assert prediction.probability == truncated.probability


def test_prediction_does_not_depend_on_the_other_texts(predictor):
    texts = ["brillo", "dregg filmo actar", "it's dregg"] * 12  # more than one batch
    predictions = predictor(texts)
    for index in (0, 1, 34, 35):
        [single] = predictor([texts[index]])
        # A different batch size changes the order of sums: a few units in the last place.
        assert predictions[index].probability == pytest.approx(single.probability, rel=1e-5)
    assert len({prediction.probability for prediction in predictions[:3]}) == 3
    assert [prediction.text for prediction in predictions] == texts


def test_top_words_are_sorted_by_decreasing_weight(predictor):
    [prediction] = predictor(["brillo dregg filmo actar it's"])
    weights = [word.weight for word in prediction.words]
    assert len(set(weights)) == 5
    assert [word.weight for word in prediction.top(3)] == sorted(weights, reverse=True)[:3]
    listed = prediction.as_json(3)["attention"]
    assert [weight for _, weight in listed] == [round(w, 4) for w in sorted(weights)[:1:-1]]


def test_model_without_attention_lists_no_words(tmp_path):
    [prediction] = Predictor(export(tmp_path / "mean", pooling="mean"))(["brillo dregg"])
    assert prediction.words == []
    assert prediction.as_json(5)["attention"] == []


# Texts without a prediction


@pytest.mark.parametrize("text", ["", " ", "...!?", "\n\t", "<>"])
def test_text_without_a_word_is_an_error(predictor, text):
    assert error_of(predictor, [text]) == "the text is empty; give at least one word"


def test_text_without_a_known_word_is_an_error(predictor):
    message = error_of(predictor, ["nothing was 日本語 heard"])
    assert message.startswith("the model knows none of the text's 4 words")
    assert message.endswith("give a text like those it was trained on")


def test_text_of_a_hundred_thousand_words_is_an_error(predictor):
    message = error_of(predictor, ["brillo " * 100_000])
    assert "has 100,000 words, the limit is 50,000" in message
    assert "only the last 7 are read; give the part that matters" in message


def test_text_of_the_maximum_number_of_words_gets_a_prediction(predictor):
    [prediction] = predictor(["brillo " * MAX_WORDS])
    assert (prediction.read, prediction.given) == (7, MAX_WORDS)


def results_of(predictor, *lines: bytes) -> tuple[int, list[dict]]:
    """Returns the number of lines without a prediction, and the result of every line."""
    results = []
    return predict_lines(predictor, lines, 2, results.append), results


def test_every_line_gives_a_prediction_or_an_error(predictor):
    lines = [b"brillo\r\n", b"\n", b"caf\xe9 brillo\n", b"unheard\n", b"dregg"]
    failures, results = results_of(predictor, *lines)
    assert failures == 3
    assert [line["line"] for line in results] == [1, 2, 3, 4, 5]
    assert ["error" in line for line in results] == [False, True, True, True, False]
    assert results[1]["error"] == "the text is empty; give at least one word"
    assert results[2]["error"].startswith("line 3 must be UTF-8, but byte 3 is 0xe9; convert it")
    assert results[4]["label"] in ("positive", "negative")


def test_line_numbers_continue_across_chunks(predictor):
    failures, results = results_of(predictor, *[b"brillo"] * 40, b"", *[b"dregg"] * 30)
    assert failures == 1
    assert [line["line"] for line in results] == list(range(1, 72))
    assert ["error" in line for line in results] == [number == 41 for number in range(1, 72)]


def test_lines_after_a_chunk_without_valid_lines_get_predictions(predictor):
    failures, results = results_of(predictor, *[b""] * 33, b"brillo")
    assert (failures, len(results)) == (33, 34)
    assert "probability" in results[33]


def test_no_lines_give_no_results(predictor):
    assert results_of(predictor) == (0, [])


# The command

predict = load_script("predict")


def test_predict_needs_only_the_model_file(model, tmp_path, monkeypatch, capsys):
    path = shutil.copy(model, tmp_path / "elsewhere.safetensors")
    monkeypatch.chdir(tmp_path)
    assert predict(path, "brillo filmo") == 0
    copied = capsys.readouterr()
    assert predict(model, "brillo filmo") == 0
    assert copied == capsys.readouterr()
    assert sorted(tmp_path.iterdir()) == [Path(path)]


def test_predict_prints_the_label_the_probability_and_the_top_words(model, predictor, capsys):
    assert predict(model, "brillo filmo dregg", "--top", 2) == 0
    [prediction] = predictor(["brillo filmo dregg"])
    words = [prediction.text[word.start : word.stop] for word in prediction.top(2)]
    line, listed = capsys.readouterr().out.splitlines()
    assert line == f"{prediction.label}  probability of positive {prediction.probability:.4f}"
    assert [word for word in words if word not in listed] == []
    assert len(listed.split(",")) == 2


def test_predict_prints_how_many_words_are_read(model, capsys):
    predict(model, "brillo " * 9)
    assert "only the last 7 of 9 words are read" in capsys.readouterr().out


def test_output_has_no_colour_outside_a_terminal(model, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    predict(model, "brillo [bold]filmo[/bold]")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("no_color", ["", "1"])
def test_output_is_coloured_on_a_terminal_unless_no_color_is_set(
    model, capsys, monkeypatch, no_color
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    predict(model, "brillo filmo dregg")
    assert ("48;" in capsys.readouterr().out) == (not no_color)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("nothing heard", "the model knows none of the text's 2 words"),
        ("brillo " * 100_000, "has 100,000 words, the limit is"),
        ("caf\udce9 brillo", "the text must be UTF-8, but byte 3 is 0xe9; convert it"),
    ],
)
def test_bad_text_is_an_error(model, text, message):
    with pytest.raises(UserError, match=message):
        predict(model, text)


LINES = b"brillo filmo\n\ncaf\xe9\n" + b"dregg " * 100_000 + b"\nit's dregg\n"


def check_lines(out: str) -> None:
    results = [json.loads(line) for line in out.splitlines()]
    assert [line["line"] for line in results] == [1, 2, 3, 4, 5]
    assert ["error" in line for line in results] == [False, True, True, True, False]


def test_file_gives_one_json_line_per_line_and_an_error_if_any_line_fails(model, tmp_path, capsys):
    (tmp_path / "reviews.txt").write_bytes(LINES)
    with pytest.raises(UserError, match="3 lines have no prediction; see"):
        predict(model, "--file", tmp_path / "reviews.txt")
    check_lines(capsys.readouterr().out)


def test_standard_input_gives_one_json_line_per_line(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    with pytest.raises(UserError, match="3 lines have no prediction; see"):
        predict(model)
    check_lines(capsys.readouterr().out)


def test_status_is_zero_if_every_line_gets_a_prediction(model, tmp_path, capsys):
    (tmp_path / "reviews.txt").write_bytes(b"brillo\ndregg\n")
    assert predict(model, "--file", tmp_path / "reviews.txt", "--top", 1) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["attention"]) for line in results] == [1, 1]


def test_closed_pipe_is_not_reported_as_an_unreadable_file(model, tmp_path, monkeypatch):
    class ClosedPipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    (tmp_path / "reviews.txt").write_bytes(b"brillo\n")
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        predict(model, "--file", tmp_path / "reviews.txt")


def test_text_and_file_together_are_an_error(model, tmp_path):
    with pytest.raises(UserError, match="give a text or --file, not both"):
        predict(model, "brillo", "--file", tmp_path)


@pytest.mark.parametrize("name", ["missing.txt", ""])
def test_file_that_cannot_be_read_is_an_error(model, tmp_path, name):
    with pytest.raises(UserError, match=r"cannot read .*; give another file"):
        predict(model, "--file", tmp_path / name)


@pytest.mark.parametrize("problem", ["missing", "empty folder", "damaged"])
def test_missing_or_damaged_run_is_an_error(model, tmp_path, problem):
    path = tmp_path / "run"
    if problem == "empty folder":
        path.mkdir()
    elif problem == "damaged":
        flip_bit(Path(shutil.copy(model, path)), model.stat().st_size - 1)
    message = "is damaged" if problem == "damaged" else "is not a run's folder"
    with pytest.raises(UserError, match=message):
        predict(path, "brillo")
