"""Asking a model about text: right words, right weights, and one line for what cannot be judged."""

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
from bilstm_attn.inference import predict as module
from bilstm_attn.inference.exported import export_model, load_model
from bilstm_attn.inference.predict import Predictor, predict_lines
from bilstm_attn.nn.model import Model

WORDS = ["filmo", "actar", "brillo", "dregg", "it's"]
SMALL = ModelConfig(embedding_size=4, hidden_size=3, layers=1, attention_size=5, dense_size=9)
CONFIG = Config(data=DataConfig(max_tokens=7, bucket_edges=(3,)), model=SMALL)


def export(path: Path, **fields) -> Path:
    """Writes a model that was never trained, its parameters large enough to make a difference."""
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


def test_prediction_is_the_models_own(predictor, model):
    [found] = predictor(["Brillo filmo, unheard brillo!"])
    params, config, vocabulary, _ = load_model(model)
    params = jax.tree.map(jnp.asarray, params)
    ids = jnp.array([[START, 6, 4, 2, 6]], jnp.int32)  # of the words' ranks, and 2 for unheard
    output = Model(config.model, vocabulary.size)(params, ids, jnp.array([5], jnp.int32))
    logit = float(output.logits[0])
    assert abs(logit) > 1e-3  # else the model says nothing
    # Another length of padding orders the sums otherwise: a few units in the last place.
    assert found.probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
    weights = [word.weight for word in found.words]
    assert weights == pytest.approx(np.asarray(output.weights[0, 1:]).tolist(), rel=1e-5)
    assert found.label == ("positive" if logit > 0 else "negative")


def test_words_are_those_of_the_text_in_its_own_spelling(predictor):
    text = "Brillo<br />FILMO -- it's"
    [found] = predictor([text])
    assert [text[w.start : w.stop] for w in found.words] == ["Brillo", "br", "FILMO", "it's"]
    assert (found.read, found.given) == (4, 4)


def test_of_a_long_text_the_last_words_are_read(predictor):
    text = " ".join(["dregg"] * 5 + ["brillo"] * 7)
    [found] = predictor([text])
    assert (found.read, found.given) == (7, 12)
    assert [text[word.start : word.stop] for word in found.words] == ["brillo"] * 7
    assert sum(word.weight for word in found.words) == pytest.approx(1, abs=1e-6)
    [alone] = predictor([" ".join(["brillo"] * 7)])
    assert found.probability == alone.probability


def test_text_says_the_same_alone_and_among_others(predictor):
    texts = ["brillo", "dregg filmo actar", "it's dregg"] * 12  # more than are asked at once
    together = predictor(texts)
    for at in (0, 1, 34, 35):
        [alone] = predictor([texts[at]])
        # Batches of other sizes order the sums otherwise: a few units in the last place.
        assert together[at].probability == pytest.approx(alone.probability, rel=1e-5)
    assert len({found.probability for found in together[:3]}) == 3
    assert [found.text for found in together] == texts


def test_top_words_come_by_falling_weight(predictor):
    [found] = predictor(["brillo dregg filmo actar it's"])
    weights = [word.weight for word in found.words]
    assert len(set(weights)) == 5
    assert [word.weight for word in found.top(3)] == sorted(weights, reverse=True)[:3]
    listed = found.as_json(3)["attention"]
    assert [weight for _, weight in listed] == [round(w, 4) for w in sorted(weights)[:1:-1]]


def test_model_without_attention_lists_no_words(tmp_path):
    [found] = Predictor(export(tmp_path / "mean", pooling="mean"))(["brillo dregg"])
    assert found.words == []
    assert found.as_json(5)["attention"] == []


# Texts that cannot be judged


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


def test_longest_text_that_is_allowed_is_judged(predictor):
    [found] = predictor(["brillo " * module.MAX_WORDS])
    assert (found.read, found.given) == (7, module.MAX_WORDS)


def judged(predictor, *lines: bytes) -> tuple[int, list[dict]]:
    found = []
    return predict_lines(predictor, lines, 2, found.append), found


def test_every_line_gets_an_object_and_bad_ones_say_why(predictor):
    lines = [b"brillo\r\n", b"\n", b"caf\xe9 brillo\n", b"unheard\n", b"dregg"]
    failed, found = judged(predictor, *lines)
    assert failed == 3
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5]
    assert ["error" in line for line in found] == [False, True, True, True, False]
    assert found[1]["error"] == "the text is empty; give at least one word"
    assert found[2]["error"].startswith("line 3 must be UTF-8, but byte 3 is 0xe9; convert it")
    assert found[4]["label"] in ("positive", "negative")


def test_lines_are_numbered_on_beyond_a_chunk(predictor):
    failed, found = judged(predictor, *[b"brillo"] * 40, b"", *[b"dregg"] * 30)
    assert failed == 1
    assert [line["line"] for line in found] == list(range(1, 72))
    assert ["error" in line for line in found] == [at == 41 for at in range(1, 72)]


def test_chunk_of_bad_lines_alone_is_no_end(predictor):
    failed, found = judged(predictor, *[b""] * 33, b"brillo")
    assert (failed, len(found)) == (33, 34)
    assert "probability" in found[33]


def test_no_lines_are_no_failure(predictor):
    assert judged(predictor) == (0, [])


# The script

ask = load_script("predict")


def test_copied_model_is_all_that_it_takes(model, tmp_path, monkeypatch, capsys):
    path = shutil.copy(model, tmp_path / "elsewhere.safetensors")
    monkeypatch.chdir(tmp_path)
    assert ask(path, "brillo filmo") == 0
    alone = capsys.readouterr()
    assert ask(model, "brillo filmo") == 0
    assert alone == capsys.readouterr()
    assert sorted(tmp_path.iterdir()) == [Path(path)]


def test_answer_says_label_probability_and_words(model, predictor, capsys):
    assert ask(model, "brillo filmo dregg", "--top", 2) == 0
    [found] = predictor(["brillo filmo dregg"])
    words = [found.text[word.start : word.stop] for word in found.top(2)]
    line, listed = capsys.readouterr().out.splitlines()
    assert line == f"{found.label}  probability of positive {found.probability:.4f}"
    assert [word for word in words if word not in listed] == []
    assert len(listed.split(",")) == 2


def test_answer_says_how_much_was_read(model, capsys):
    ask(model, "brillo " * 9)
    assert "only the last 7 of 9 words are read" in capsys.readouterr().out


def test_answer_off_a_terminal_has_no_colour(model, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    ask(model, "brillo [bold]filmo[/bold]")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("no_color", ["", "1"])
def test_answer_is_shaded_on_a_terminal_unless_no_color(model, capsys, monkeypatch, no_color):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    ask(model, "brillo filmo dregg")
    assert ("48;" in capsys.readouterr().out) == (not no_color)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the text is empty"),
        ("nothing heard", "the model knows none of the text's 2 words"),
        ("brillo " * 100_000, "has 100,000 words, the limit is"),
        ("caf\udce9 brillo", "the text must be UTF-8, but byte 3 is 0xe9; convert it"),
    ],
)
def test_script_says_what_is_wrong_with_a_text(model, text, says):
    with pytest.raises(UserError, match=says):
        ask(model, text)


LINES = b"brillo filmo\n\ncaf\xe9\n" + b"dregg " * 100_000 + b"\nit's dregg\n"


def check_lines(out: str) -> None:
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["line"] for line in found] == [1, 2, 3, 4, 5]
    assert ["error" in line for line in found] == [False, True, True, True, False]


def test_file_gives_a_json_line_a_line_and_fails_if_one_did(model, tmp_path, capsys):
    (tmp_path / "reviews.txt").write_bytes(LINES)
    with pytest.raises(UserError, match="3 lines could not be judged; their JSON lines say why"):
        ask(model, "--file", tmp_path / "reviews.txt")
    check_lines(capsys.readouterr().out)


def test_standard_input_gives_a_json_line_a_line(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    with pytest.raises(UserError, match="3 lines could not be judged"):
        ask(model)
    check_lines(capsys.readouterr().out)


def test_good_lines_alone_are_status_zero(model, tmp_path, capsys):
    (tmp_path / "reviews.txt").write_bytes(b"brillo\ndregg\n")
    assert ask(model, "--file", tmp_path / "reviews.txt", "--top", 1) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line["attention"]) for line in found] == [1, 1]


def test_closed_pipe_is_not_taken_for_an_unreadable_file(model, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    (tmp_path / "reviews.txt").write_bytes(b"brillo\n")
    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        ask(model, "--file", tmp_path / "reviews.txt")


def test_text_and_file_together_are_an_error(model, tmp_path):
    with pytest.raises(UserError, match="give a text or --file, not both"):
        ask(model, "brillo", "--file", tmp_path)


@pytest.mark.parametrize("name", ["missing.txt", ""])
def test_file_that_cannot_be_read_is_an_error(model, tmp_path, name):
    with pytest.raises(UserError, match=r"cannot read .*; give another file"):
        ask(model, "--file", tmp_path / name)


@pytest.mark.parametrize("what", ["missing", "empty folder", "damaged"])
def test_run_that_will_not_do_is_one_line(model, tmp_path, what):
    path = tmp_path / "run"
    if what == "empty folder":
        path.mkdir()
    elif what == "damaged":
        flip_bit(Path(shutil.copy(model, path)), model.stat().st_size - 1)
    says = "is damaged" if what == "damaged" else "is not a run's folder"
    with pytest.raises(UserError, match=says):
        ask(path, "brillo")
