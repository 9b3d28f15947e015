"""Word vectors from a file: which words get them, and what is refused."""

import jax
import numpy as np
import pytest
from process_group import losses
from tiny_run import error_of, tiny_run, train

from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.data.vocabulary import RESERVED, Vocabulary
from bilstm_attn.data.word_vectors import read_vectors
from bilstm_attn.nn.model import Model
from bilstm_attn.training.initial import digest_of, initial_params, read_initial
from bilstm_attn.training.options import VerifyOptions
from bilstm_attn.training.reproduce import run_verification


def verify(run, folder):
    locations = DataLocations(cache=folder / "cache")
    run_verification(VerifyOptions(run.folder, locations=locations))


WORDS = Vocabulary(["filmo", "brillo", "dregg"])


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_words_get_the_vector_of_their_first_line_in_the_file(tmp_path):
    lines = "dregg 1 -2.5", "unknown 3 4", "filmo 5 6 ", "dregg 7 8"
    for heading in ((), ("4 2",)):
        found = read_vectors(write(tmp_path / "some.vec", *heading, *lines), WORDS, 2)
        assert found.ids.tolist() == [RESERVED + 2, RESERVED]
        assert found.vectors.tolist() == [[1, -2.5], [5, 6]]
        assert found.vectors.dtype == np.float32


@pytest.mark.slow
def test_a_run_is_initialised_from_vectors_and_records_their_digest(untrained):
    lines = (f"{word} {number} 0 0 {-number}" for number, word in enumerate(["brillo", "dregg"], 1))
    path = write(untrained / "some.vec", *lines)
    fields = {"train__init_from": f"vectors:{path}", "train__epochs": 1}
    assert train(untrained, "--name", "tiny", **fields) == 0
    run = tiny_run(untrained)
    assert run.environments()[-1]["init_from_sha256"] == digest_of(f"vectors:{path}")
    config = run.config()
    model = Model(config.model, RESERVED + 3)
    found = read_vectors(path, WORDS, 4)
    values = read_initial(config.train.init_from, model, WORDS)
    with_them, without = (initial_params(model, 0, start) for start in (values, None))
    embedding = np.asarray(with_them["embedding"])
    assert embedding[RESERVED + 1].tolist() == [1, 0, 0, -1]
    others = np.delete(np.arange(len(embedding)), found.ids)
    np.testing.assert_array_equal(embedding[others], np.asarray(without["embedding"])[others])
    del with_them["embedding"], without["embedding"]
    jax.tree.map(np.testing.assert_array_equal, with_them, without)
    assert train(untrained, "--name", "other", train__epochs=1) == 0
    assert losses(run) != losses(tiny_run(untrained, "other"))
    path.write_text(path.read_text().replace("1 0", "1 1"))
    assert "was initialised from another file" in error_of(verify, run, untrained)


def test_words_with_spaces_are_skipped_and_words_with_line_separators_are_read(tmp_path):
    lines = "brillo 1 2", ". . 3 4", "a\x85b 5 6", "c\rd 7 8", "filmo 9 0"
    found = read_vectors(write(tmp_path / "some.vec", *lines), WORDS, 2)
    assert found.vectors.tolist() == [[1, 2], [9, 0]]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["brillo 1 2 3"], "must have model.embedding_size = 2 numbers, but line 1 of"),
        (
            ["brillo 1 2", "dregg 1"],
            "has 1; set model.embedding_size to the size of the file's vectors",
        ),
        (["brillo 1 x"], "must hold finite numbers; fix that line"),
        (["brillo 1 nan"], "must hold finite numbers; fix that line"),
        (["another 1 2"], "but has none of its 3 words"),
        ([], "but has none of its 3 words"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, lines, says):
    path = write(tmp_path / "some.vec", *lines)
    assert says in error_of(read_vectors, path, WORDS, 2)


def test_a_missing_file_is_one_line(untrained):
    message = error_of(
        train, untrained, "--name", "tiny", train__init_from=f"vectors:{untrained / 'none.vec'}"
    )
    assert message.startswith("cannot read the source of train.init_from: ")
    assert not tiny_run(untrained).folder.exists()
