"""Whatever people hand in: nothing but the documented errors.

At length: `CASES=300000 pytest tests/test_fuzz.py --hypothesis-show-statistics`.
"""

import dataclasses
import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_run import load_script, train_once

from bilstm_attn.config import Config, fields_of
from bilstm_attn.config_files import from_json
from bilstm_attn.data.batches import plan_epoch, read_batch
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.tokenisers import SEPARATORS, Keras
from bilstm_attn.data.vocabulary import clip
from bilstm_attn.errors import UserError
from bilstm_attn.inference.exported import load_model
from bilstm_attn.inference.predict import Predictor, predict_lines
from bilstm_attn.runtime.devices import Part
from bilstm_attn.runtime.files import tree_sha256
from bilstm_attn.training import commands as session
from bilstm_attn.training import reproduce as verify

CASES = int(os.environ.get("CASES", "100"))  # of each test
settings.register_profile("here", max_examples=CASES, deadline=None, database=None)
settings.load_profile("here")
same_function = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

train_script = load_script("train")

texts = st.text() | st.text(alphabet=SEPARATORS + string.ascii_letters + " 'İßﬁ\x00\u2028")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The exported model of a finished run."""
    return train_once(tmp_path_factory) / "runs" / "tiny" / "seed0" / "model.safetensors"


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)


# Texts


@given(texts)
@example("İ")
def test_words_are_lower_case_spans_of_the_text(text):
    words, spans = Keras()(text), Keras().spans(text)
    assert [text[start:stop].lower() for start, stop in spans] == words
    assert not any(set(word) & set(SEPARATORS + " ") for word in words)


@given(st.lists(st.integers(4, 99)), st.integers(1, 30))
def test_clipped_text_is_its_end(ids, most):
    clipped = clip(np.array(ids, np.int32), most)
    assert clipped.tolist() == [1, *ids][-most:]


@given(text=texts)
def test_text_is_read_or_refused_in_one_line(predictor, text):
    try:
        ids = predictor.read(text)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < len(ids) <= predictor.config.data.max_tokens
        assert (ids < predictor.vocabulary.size).all()


@given(
    lines=st.lists(
        st.binary()
        | st.just(b"brillo filmo")
        | texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
        max_size=5,
    )
)
def test_every_line_gets_an_answer(predictor, lines):
    said = []
    failed = predict_lines(predictor, lines, 3, said.append)
    assert [answer["line"] for answer in said] == list(range(1, len(lines) + 1))
    assert sum("error" in answer for answer in said) == failed
    assert all(0 <= answer["probability"] <= 1 for answer in said if "error" not in answer)
    json.dumps(said)


# Recipes


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
places = st.sampled_from(sorted(fields_of(Config()))) | st.text(max_size=8)


@given(st.dictionaries(places, values, max_size=4))
def test_saved_config_with_any_change_is_one_or_an_error(changes):
    config = dataclasses.asdict(Config())
    for place, value in changes.items():
        *owners, name = place.split(".")
        owner = config
        for part in owners:
            owner = owner.setdefault(part, {}) if isinstance(owner, dict) else {}
        if isinstance(owner, dict):
            owner[name] = value
    try:
        made = from_json(json.dumps(config), "config.json")
    except UserError as error:
        assert "config.json" in str(error)
    else:
        assert from_json(made.to_json(), "again") == made


@given(st.text() | values.filter(lambda value: value != {}).map(json.dumps))
def test_config_that_is_something_else_is_an_error(text):
    with pytest.raises(UserError, match=r"config\.json"):
        from_json(text, "config.json")


flags = st.sampled_from(
    [f"--{name.replace('_', '-')}" for name in fields_of(Config())]
    + ["--seeds", "--devices", "--resume", "--backend", "--distributed", "--processes", "--cache"]
)
words = flags | st.text(max_size=6) | st.integers().map(str) | st.floats().map(str)


@settings(max_examples=CASES // 5)  # a slow one
@given(recipe=st.sampled_from(["quickstart", "best"]) | st.text(), rest=st.lists(words, max_size=4))
@example("n" * 300, [])
def test_command_line_is_understood_or_refused_in_one_line(recipe, rest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "run_training", lambda *given, **more: 0)
        patch.setattr(verify, "run_verification", lambda *given: 0)
        try:
            assert train_script(recipe, *rest) == 0
        except UserError as error:
            assert "\n" not in str(error)
        except SystemExit as leaving:  # --help
            assert leaving.code in (0, None)


# Files


@same_function
@given(data=st.data())
def test_changed_model_file_is_refused_or_the_same(model, tmp_path_factory, data):
    whole = model.read_bytes()
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "other"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        changed = bytearray(whole)
        changed[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        changed = whole[:at]
    elif kind == "insert":
        changed = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:]
    else:
        changed = data.draw(st.binary(max_size=64))
    path.write_bytes(changed)
    try:
        found = load_model(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        expected = load_model(model)
        assert tree_sha256(found.params) == tree_sha256(expected.params)
        assert found.config == expected.config
        assert found.vocabulary.words == expected.vocabulary.words


# Plans of batches


def numbered_examples(counts: list[int], most: int) -> Examples:
    """Returns reviews of so many words whose labels are their numbers."""
    stops, rows = np.cumsum(counts), np.arange(len(counts))
    return Examples(
        ids=np.arange(4, 4 + stops[-1], dtype=np.int32),
        starts=stops - counts,
        stops=stops,
        labels=rows,
        rows=rows,
        lengths=np.minimum(np.array(counts) + 1, most),
    )


@given(
    counts=st.lists(st.integers(0, 15), min_size=1, max_size=40),
    processes=st.integers(1, 4),
    edges=st.sampled_from([(12,), (8, 12), (4, 8, 12)]),
    rows=st.integers(1, 3),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    resumed=st.integers(0, 50),
)
def test_every_row_is_seen_once_an_epoch_in_one_order_whoever_reads_and_resumes(
    counts, processes, edges, rows, epoch, seed, resumed
):
    config = dataclasses.replace(
        Config().data,
        batch_size=processes * len(edges) * rows,
        max_tokens=edges[-1],
        bucket_edges=edges[:-1],
    )
    examples = numbered_examples(counts, config.max_tokens)
    planned = plan_epoch(examples.lengths, config, seed, epoch)

    def labels(part: Part, since: int = 0) -> list[list[list[int]]]:
        """Returns those that a process reads from a step on: of each step, of each group."""
        again = plan_epoch(examples.lengths, config, seed, epoch)
        batches = [read_batch(examples, plan, config, part) for plan in again[since:]]
        return [[group.label.tolist() for group in batch] for batch in batches]

    alone = labels(Part(0, 1))
    shared = [labels(Part(number, processes)) for number in range(processes)]
    together = [
        [[label for part in shared for label in part[step][group]] for group in range(len(batch))]
        for step, batch in enumerate(alone)
    ]
    assert together == alone
    seen = [label for batch in alone for group in batch for label in group if label >= 0]
    assert sorted(seen) == list(range(examples.size))
    since = min(resumed, len(planned))
    assert labels(Part(0, 1), since) == alone[since:]
