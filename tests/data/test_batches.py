"""Parts, vocabulary and batches: pure functions of seed and epoch that lose and double nothing."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from bilstm_attn.config import DataConfig
from bilstm_attn.data.batches import plan_by_length, plan_epoch, read_batch
from bilstm_attn.data.sources import MovieReviews
from bilstm_attn.data.splits import (
    Examples,
    count_vocabulary,
    draw_parts,
    read_rows,
    select_examples,
)
from bilstm_attn.data.token_cache import Split
from bilstm_attn.data.tokenisers import Keras
from bilstm_attn.data.vocabulary import START, UNKNOWN
from bilstm_attn.errors import UserError

CONFIG = DataConfig(
    validation_examples=4, vocabulary_size=9, max_tokens=12, batch_size=6, bucket_edges=(5, 8)
)
LEXICON = ["a", "b", "c", "d", "e", "f", "g", "h"]


def random_split():
    """Returns 23 random reviews of 0 to 20 words."""
    numbers = np.random.default_rng(0)
    counts = numbers.integers(0, 21, 23)
    words = numbers.integers(0, len(LEXICON) - 1, counts.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Split(words, offsets, numbers.integers(0, 2, 23).astype(np.int8))


SPLIT = random_split()


def review(row):
    """Returns the words of a review."""
    start, stop = SPLIT.offsets[row : row + 2]
    return [LEXICON[word] for word in SPLIT.words[start:stop]]


def examples(rows=None) -> Examples:
    rows = np.arange(23) if rows is None else rows
    vocabulary = count_vocabulary(SPLIT, rows, LEXICON, CONFIG.vocabulary_size)
    return select_examples(SPLIT, rows, vocabulary, LEXICON, CONFIG.max_tokens)


def test_parts_are_disjoint_whole_and_drawn_by_seed():
    training, validation = draw_parts(np.arange(23), CONFIG, seed=0)
    assert len(validation) == 4
    assert sorted([*training, *validation]) == list(range(23))
    again, other = (
        draw_parts(np.arange(23), CONFIG, seed=0),
        draw_parts(np.arange(23), CONFIG, seed=1),
    )
    np.testing.assert_array_equal(again[1], validation)
    assert not np.array_equal(other[1], validation)


def test_fewer_training_reviews_leave_the_validation_ones_as_they_are():
    few = DataConfig(validation_examples=4, train_examples=5)
    training, validation = draw_parts(np.arange(23), few, seed=0)
    assert len(training) == 5
    np.testing.assert_array_equal(validation, draw_parts(np.arange(23), CONFIG, seed=0)[1])
    assert not set(training) & set(validation)


def test_longer_reviews_are_left_out_if_asked_for():
    np.testing.assert_array_equal(read_rows(SPLIT, CONFIG), np.arange(23))
    short = dataclasses.replace(CONFIG, drop_longer=True)
    rows = read_rows(SPLIT, short)
    assert 0 < len(rows) < 23
    # With the start token, a review of max_tokens - 1 words is read whole.
    assert SPLIT.counts[rows].max() == CONFIG.max_tokens - 1
    assert SPLIT.counts[np.setdiff1d(np.arange(23), rows)].min() == CONFIG.max_tokens


def test_asking_for_more_reviews_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"has 23 training examples.*require 24; lower one"):
        draw_parts(np.arange(23), DataConfig(validation_examples=4, train_examples=20), seed=0)


def test_vocabulary_counts_the_training_rows_alone_and_breaks_ties_by_word():
    rows = np.array([0, 3, 4, 7, 11])
    vocabulary = count_vocabulary(SPLIT, rows, LEXICON, CONFIG.vocabulary_size)
    counts = Counter(word for row in rows for word in review(row))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    assert list(vocabulary.words) == ranked[: CONFIG.vocabulary_size - 4]


def test_every_review_is_read_once_an_epoch_and_as_it_stands():
    made = examples()
    vocabulary = count_vocabulary(SPLIT, made.rows, LEXICON, CONFIG.vocabulary_size)
    for plans in (plan_epoch(made.lengths, CONFIG, 0, 0), plan_by_length(made.lengths, CONFIG)):
        seen = []
        for plan in plans:
            groups = read_batch(made, plan, CONFIG)
            assert sum(len(group.label) for group in groups) == CONFIG.batch_size
            filled = [(group, row) for group in groups for row in np.flatnonzero(group.weight == 1)]
            chosen = plan.slots[plan.slots >= 0]
            for (group, row), example in zip(filled, chosen, strict=True):
                ids = [START, *vocabulary.encode(review(example)).tolist()][-CONFIG.max_tokens :]
                assert group.tokens[row, : group.length[row]].tolist() == ids
                assert (group.tokens[row, group.length[row] :] == 0).all()
                assert group.label[row] == SPLIT.labels[example]
            for group in groups:
                filler = group.weight == 0
                assert (group.length[filler] == 0).all()
                assert (group.label[filler] == -1).all()
                assert (group.tokens[filler] == 0).all()
            assert plan.size == len(chosen)
            seen += chosen.tolist()
        assert sorted(seen) == list(range(23))


def test_groups_hold_similar_lengths_padded_to_the_edges():
    made = examples()
    assert CONFIG.edges == (5, 8, 12)
    plans = plan_epoch(made.lengths, CONFIG, 0, 0)
    for plan in plans:
        groups = read_batch(made, plan, CONFIG)
        assert tuple(group.tokens.shape[1] for group in groups) == plan.edges
        for shorter, longer in itertools.pairwise(groups):
            assert shorter.length.max() <= longer.length.min()
    assert {plan.edges for plan in plans} <= {(5, 8, 12), (12, 12, 12)}


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_get_reviews_of_like_lengths(devices):
    data = DataConfig(batch_size=256, max_tokens=500)
    lengths = np.random.default_rng(0).integers(1, 501, 1000)
    for plan in [*plan_epoch(lengths, data, 0, 0)[:3], *plan_by_length(lengths, data)[:3]]:
        for group in np.split(plan.slots, len(plan.edges)):
            parts = lengths[group].reshape(devices, -1).mean(axis=1)
            # In sorted order, halves would differ by half the range.
            assert np.ptp(parts) < np.ptp(lengths[group]) / 6 + 1


def test_a_batch_that_does_not_fit_is_padded_whole():
    long = np.full(6, 9)
    (plan,) = plan_epoch(long, CONFIG, 0, 0)
    assert plan.edges == (12, 12, 12)
    short = np.array([1, 2, 3, 3, 8, 8])
    (plan,) = plan_epoch(short, CONFIG, 0, 0)
    assert plan.edges == (5, 8, 12)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = examples().lengths

    def order(seed, epoch):
        return [plan.slots.tolist() for plan in plan_epoch(lengths, CONFIG, seed, epoch)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_unknown_words_become_one_id():
    rows = np.arange(23)
    made = examples(rows)
    known = len(set(made.ids.tolist()) - {UNKNOWN})
    assert known == CONFIG.vocabulary_size - 4
    assert UNKNOWN in made.ids


def test_real_reviews_in_random_batches_fit_the_default_edges():
    config = DataConfig()
    lengths = [len(Keras()(text)) + 1 for text, _ in MovieReviews().read("train")]
    lengths = np.minimum(lengths, config.max_tokens)
    plans = [plan for epoch in range(3) for plan in plan_epoch(lengths, config, 0, epoch)]
    assert len(plans) == 3 * 98
    assert sum(plan.edges == config.edges for plan in plans) >= 293
