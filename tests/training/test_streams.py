"""Streams: unlabelled rows next to labelled ones, each in an order of its own."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from tiny_run import error_of, train

from bilstm_attn.config import DataConfig
from bilstm_attn.data.batches import Stream, plan_epoch, read_batch
from bilstm_attn.data.splits import Examples, concatenate
from bilstm_attn.errors import UserError
from bilstm_attn.training.objectives import OBJECTIVES, CrossEntropy, Term
from bilstm_attn.training.run_dir import RunDir

CONFIG = DataConfig(
    vocabulary_size=9, max_tokens=6, batch_size=4, unlabelled_batch_size=6, bucket_edges=(3,)
)
LABELLED, UNLABELLED = 11, 8


def random_examples(size: int, first_id: int, label: int) -> Examples:
    """Returns examples of 1 to 5 words, all with ids from `first_id`."""
    counts = np.random.default_rng(size).integers(1, 6, size)
    stops = np.cumsum(counts)
    ids = np.full(stops[-1], first_id, np.int32)
    labels = np.full(size, label, np.int8)
    return Examples(ids, stops - counts, stops, labels, np.arange(size), counts + 1)


EXAMPLES = concatenate(random_examples(LABELLED, 5, 1), random_examples(UNLABELLED, 7, -1))
STREAM = Stream("unlabelled", range(LABELLED, LABELLED + UNLABELLED), 6)


def slots(seed: int, epoch: int, stream: Stream = STREAM) -> list[list[int]]:
    """Returns the examples of every step of an epoch, without filler."""
    plans = plan_epoch(EXAMPLES.lengths, CONFIG, seed, epoch, [stream])
    return [[int(slot) for slot in plan.slots if slot >= 0] for plan in plans]


def test_every_batch_has_the_quota_of_each_stream():
    steps = slots(0, 0)
    assert len(steps) == 3  # 11 labelled examples in batches of 4
    for step, size in zip(steps, (4, 4, 3), strict=True):
        assert sum(slot < LABELLED for slot in step) == size
        assert sum(slot >= LABELLED for slot in step) == 6
    assert sorted(slot for step in steps for slot in step if slot < LABELLED) == list(range(11))


def test_a_stream_is_read_pass_after_pass_across_epochs():
    drawn = [slot for epoch in range(4) for step in slots(0, epoch) for slot in step]
    counts = Counter(slot for slot in drawn if slot >= LABELLED)
    assert sorted(counts) == list(STREAM.examples)
    assert set(counts.values()) == {9}  # 4 epochs × 3 steps × 6 rows over 8 examples


def test_rows_are_a_function_of_seed_and_step_and_streams_do_not_affect_each_other():
    assert slots(0, 1) == slots(0, 1) != slots(1, 1)

    def labelled(stream):
        return [[slot for slot in step if slot < LABELLED] for step in slots(0, 0, stream)]

    plain = dataclasses.replace(CONFIG, unlabelled_batch_size=0)
    plans = plan_epoch(EXAMPLES.lengths[:LABELLED], plain, 0, 0)
    assert list(map(sorted, labelled(STREAM))) == [
        sorted(slot for slot in plan.slots.tolist() if slot >= 0) for plan in plans
    ]
    other = STREAM._replace(name="other")
    assert slots(0, 0, other) != slots(0, 0)
    assert list(map(sorted, labelled(other))) == list(map(sorted, labelled(STREAM)))


def test_rows_of_a_stream_are_its_examples_with_label_minus_one():
    for plan in plan_epoch(EXAMPLES.lengths, CONFIG, 0, 0, [STREAM]):
        for group in read_batch(EXAMPLES, plan, CONFIG):
            for row in np.flatnonzero(group.weight):
                word = group.tokens[row, group.length[row] - 1]
                assert (word, group.label[row]) in [(5, 1), (7, -1)]


def test_extras_follow_their_examples_and_are_zero_at_filler():
    extras = {"row": np.arange(19.0), "ids": np.zeros((19, 6))}
    for row, (start, stop) in enumerate(zip(EXAMPLES.starts, EXAMPLES.stops, strict=True)):
        extras["ids"][row, : stop - start + 1] = [1, *EXAMPLES.ids[start:stop]]
    examples = EXAMPLES._replace(extras=extras)
    for plan in plan_epoch(examples.lengths, CONFIG, 0, 0, [STREAM]):
        groups = read_batch(examples, plan, CONFIG)
        rows = np.concatenate([group.extras["row"] for group in groups])
        np.testing.assert_array_equal(rows, np.maximum(plan.slots, 0) * (plan.slots >= 0))
        for group in groups:
            np.testing.assert_array_equal(group.extras["ids"], group.tokens)


class CountRows(CrossEntropy):
    """Cross-entropy, and the share of all rows that are unlabelled."""

    coefficients = {"cross_entropy": 1.0, "accuracy": 0.0, "unlabelled": 0.0}  # noqa: RUF012

    def __call__(self, model, params, batch, keys):
        share = Term((batch.weight * (batch.label < 0)).sum(), batch.weight.sum())
        return super().__call__(model, params, batch, keys) | {"unlabelled": share}


def test_training_with_unlabelled_rows_reports_their_share(untrained, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "count_rows", CountRows)
    fields = {"data__unlabelled_batch_size": 4, "data__dataset": "imdb"}
    fields |= {"train__objective": "count_rows"}
    assert train(untrained, "--name", "streams", **fields) == 0
    run = RunDir(untrained / "runs" / "streams" / "seed0")
    epochs = [record for record in run.records() if record["kind"] == "epoch"]
    assert [record["step"] for record in epochs] == [6, 12]  # 48 labelled examples, 8 per step
    assert [record["train_unlabelled"] for record in epochs] == pytest.approx([1 / 3, 1 / 3])


def test_a_quota_without_unlabelled_texts_is_one_line(untrained):
    message = error_of(train, untrained, "--name", "none", data__unlabelled_batch_size=4)
    assert message.startswith("data.unlabelled_batch_size must be 0 for movie_reviews")
    assert not (untrained / "runs" / "none").exists()


def test_a_quota_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(UserError, match="positive multiple of the 2 length groups"):
        DataConfig(max_tokens=6, batch_size=4, unlabelled_batch_size=3, bucket_edges=(3,))
