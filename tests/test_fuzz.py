"""Random texts, recipes, command lines and files cause no errors but the documented ones.

Long form: `CASES=300000 pytest tests/test_fuzz.py --hypothesis-show-statistics`.
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
from bilstm_attn.training import reproduce, train_command

CASES = int(os.environ.get("CASES", "100"))  # per test
settings.register_profile("project", max_examples=CASES, deadline=None, database=None)
settings.load_profile("project")
shared_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

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
def test_clip_returns_the_last_ids_after_adding_the_start_token(ids, max_tokens):
    clipped = clip(np.array(ids, np.int32), max_tokens)
    assert clipped.tolist() == [1, *ids][-max_tokens:]


@given(text=texts)
def test_any_text_gives_known_token_ids_or_a_one_line_error(predictor, text):
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
def test_every_input_line_gives_a_probability_or_an_error(predictor, lines):
    results = []
    failures = predict_lines(predictor, lines, 3, results.append)
    assert [result["line"] for result in results] == list(range(1, len(lines) + 1))
    assert sum("error" in result for result in results) == failures
    assert all(0 <= result["probability"] <= 1 for result in results if "error" not in result)
    json.dumps(results)


# Recipes


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
field_names = st.sampled_from(sorted(fields_of(Config()))) | st.text(max_size=8)


@given(st.dictionaries(field_names, values, max_size=4))
def test_changed_saved_config_loads_or_is_an_error_that_names_the_file(changes):
    fields = dataclasses.asdict(Config())
    for dotted_name, value in changes.items():
        *sections, name = dotted_name.split(".")
        owner = fields
        for section in sections:
            owner = owner.setdefault(section, {}) if isinstance(owner, dict) else {}
        if isinstance(owner, dict):
            owner[name] = value
    try:
        config = from_json(json.dumps(fields), "config.json")
    except UserError as error:
        assert "config.json" in str(error)
    else:
        assert from_json(config.to_json(), "saved again") == config


@given(st.text() | values.filter(lambda value: value != {}).map(json.dumps))
def test_text_that_is_no_config_is_an_error_that_names_the_file(text):
    with pytest.raises(UserError, match=r"config\.json"):
        from_json(text, "config.json")


flags = st.sampled_from(
    [f"--{name.replace('_', '-')}" for name in fields_of(Config())]
    + ["--seeds", "--devices", "--resume", "--backend", "--distributed", "--processes", "--cache"]
)
arguments = flags | st.text(max_size=6) | st.integers().map(str) | st.floats().map(str)


@settings(max_examples=CASES // 5)  # slower than the other tests
@given(
    recipe=st.sampled_from(["quickstart", "best"]) | st.text(), rest=st.lists(arguments, max_size=4)
)
@example("n" * 300, [])
def test_any_command_line_is_accepted_or_a_one_line_error(recipe, rest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "run_training", lambda config, options: 0)
        patch.setattr(reproduce, "run_verification", lambda options: 0)
        try:
            assert train_script(recipe, *rest) == 0
        except UserError as error:
            assert "\n" not in str(error)
        except SystemExit as system_exit:  # --help
            assert system_exit.code in (0, None)


# Files


@shared_fixtures
@given(data=st.data())
def test_changed_model_file_is_a_one_line_error_or_the_same_model(model, tmp_path_factory, data):
    original = model.read_bytes()
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    kind = data.draw(st.sampled_from(["change a byte", "truncate", "insert", "replace"]))
    offset = data.draw(st.integers(0, len(original) - 1))
    if kind == "change a byte":
        changed = bytearray(original)
        changed[offset] ^= data.draw(st.integers(1, 255))
    elif kind == "truncate":
        changed = original[:offset]
    elif kind == "insert":
        inserted = data.draw(st.binary(min_size=1, max_size=9))
        changed = original[:offset] + inserted + original[offset:]
    else:
        changed = data.draw(st.binary(max_size=64))
    path.write_bytes(changed)
    try:
        loaded = load_model(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        expected = load_model(model)
        assert tree_sha256(loaded.params) == tree_sha256(expected.params)
        assert loaded.config == expected.config
        assert loaded.vocabulary.words == expected.vocabulary.words


# Plans of batches


def numbered_examples(counts: list[int], max_tokens: int) -> Examples:
    """Returns one example of `count` words per count; its label is its row number."""
    stops, rows = np.cumsum(counts), np.arange(len(counts))
    return Examples(
        ids=np.arange(4, 4 + stops[-1], dtype=np.int32),
        starts=stops - counts,
        stops=stops,
        labels=rows,
        rows=rows,
        lengths=np.minimum(np.array(counts) + 1, max_tokens),
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
def test_batches_contain_every_row_once_for_any_number_of_processes_and_after_resuming(
    counts, processes, edges, rows, epoch, seed, resumed
):
    config = dataclasses.replace(
        Config().data,
        batch_size=processes * len(edges) * rows,
        max_tokens=edges[-1],
        bucket_edges=edges[:-1],
    )
    examples = numbered_examples(counts, config.max_tokens)
    steps = len(plan_epoch(examples.lengths, config, seed, epoch))

    def labels(part: Part, first_step: int = 0) -> list[list[list[int]]]:
        """Returns the labels that one process reads, per step and length group."""
        plans = plan_epoch(examples.lengths, config, seed, epoch)[first_step:]
        batches = [read_batch(examples, plan, config, part) for plan in plans]
        return [[group.label.tolist() for group in batch] for batch in batches]

    single_process = labels(Part(0, 1))
    per_process = [labels(Part(number, processes)) for number in range(processes)]
    joined = [
        [[label for part in per_process for label in part[step][group]] for group in range(groups)]
        for step, groups in enumerate(map(len, single_process))
    ]
    assert joined == single_process
    read = [label for batch in single_process for group in batch for label in group if label >= 0]
    assert sorted(read) == list(range(examples.size))
    first_step = min(resumed, steps)
    assert labels(Part(0, 1), first_step) == single_process[first_step:]
