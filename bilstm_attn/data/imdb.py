"""IMDB through tensorflow-datasets (tfds), without TensorFlow: prepared once, then read.

The builder of tfds opens the archive through TensorFlow; the one here reads it with `tarfile` and
writes the same files, which the reader of tfds reads. The records are in the order of tfds, by a
hash of the path in the archive, so it is the same on every machine. `sources.py` imports this file
only when IMDB is read, because the import is slow.
"""

import contextlib
import http.client
import io
import json
import re
import sys
import tarfile
import threading
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import array_record.python.array_record_module  # noqa: F401  # fails here; tfds imports it late
import requests
import tensorflow_datasets as tfds
from rich.console import Console as RichConsole
from rich.progress import track
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import decode_utf8

# Number of reviews per split, by tfds's names; half of each labelled split is positive.
IMDB_SIZES = {"train": 25_000, "test": 25_000, "unsupervised": 50_000}
PREPARED = Path("imdb_reviews", "plain_text", "1.0.0")
MANUAL = Path("downloads", "manual", "aclImdb_v1.tar.gz")

_PROBE_SECONDS = 8
_READ_BATCH = 1000  # records per read; reading them singly takes three times as long
_LABELS = {"neg": 0, "pos": 1, "unsup": -1}
# Excludes the `._*` files that macOS adds to archives.
_MEMBER = re.compile(r"(?:\./)?(aclImdb/(train|test)/(neg|pos|unsup)/\d+_\d+\.txt)")

Review = tuple[str, int]  # text and label: 1 positive, 0 negative, -1 unlabelled
Reviews = dict[str, dict[str, Review]]  # by split, then by path in the archive


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the same files as tfds's own `imdb_reviews/plain_text:1.0.0`."""

    name = "imdb_reviews"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="plain_text", description="Plain text"),)

    def __init__(self, data_dir: Path, reviews: Reviews):
        self._reviews = reviews
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=["neg", "pos"])
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label}),
            supervised_keys=("text", "label"),
            homepage="http://ai.stanford.edu/~amaas/data/sentiment/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._reviews}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        reviews = self._reviews[split]
        for path, (text, label) in _progress(reviews.items(), f"writing {split}", len(reviews)):
            yield path, {"text": text, "label": label}


def _progress(items: Any, description: str, total: int) -> Any:
    return track(items, f"{description:20}", total, console=RichConsole(stderr=True))


def read_archive(archive: Path) -> Reviews:
    """Returns all reviews in `archive`, a copy of aclImdb_v1.tar.gz.

    Raises:
      UserError: the file is missing or damaged, or lacks some of IMDB's reviews.
    """
    if not archive.is_file():
        raise UserError(
            f"archive {archive} must be a file, but is not; give the path of aclImdb_v1.tar.gz"
        )
    reviews: Reviews = {split: {} for split in IMDB_SIZES}
    try:
        with tarfile.open(archive) as tar:
            for member in _progress(tar, "reading the archive", sum(IMDB_SIZES.values())):
                match = _MEMBER.fullmatch(member.name)
                if match and (file := tar.extractfile(member)):
                    path, split, kind = match.groups()
                    # Stripped as bytes, as in tfds: str.strip removes more kinds of space.
                    text = decode_utf8(file.read().strip(), f"{path} in {archive}")
                    name = "unsupervised" if kind == "unsup" else split
                    reviews[name][path] = text, _LABELS[kind]
            # Read to the end of the file, because gzip verifies its checksum there.
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise UserError(
            f"archive {archive} must be a complete .tar.gz file, but reading it failed ({reason}); "
            "download aclImdb_v1.tar.gz again"
        ) from None
    _require_all_reviews(reviews, archive)
    return reviews


def _require_all_reviews(reviews: Reviews, archive: Path) -> None:
    for split, size in IMDB_SIZES.items():
        labels = [label for _, label in reviews[split].values()]
        required, actual = f"{size:,} reviews", f"{len(labels):,}"
        complete = len(labels) == size
        if split != "unsupervised":
            required += ", half of them positive,"
            actual += f" with {labels.count(1):,} positive"
            complete = complete and 2 * labels.count(1) == size
        if not complete:
            raise UserError(
                f"archive {archive} must hold {required} for {split} below aclImdb/, "
                f"but holds {actual}; download the published aclImdb_v1.tar.gz"
            )


def open_data_set(data_dir: Path, archive: Path | None = None) -> Any:
    """Returns tfds's builder of the prepared data set below `data_dir`.

    If the data set is not prepared yet, prepares it from the first of: `archive`, the archive in
    tfds's folder for manual downloads, a download.

    Raises:
      UserError: the data cannot be obtained or written, or the prepared data set is incomplete.
    """
    folder = data_dir / PREPARED
    if folder.exists():
        if archive:
            print(f"{folder} is already prepared; {archive} is not read", file=sys.stderr)
    else:
        if not archive and (data_dir / MANUAL).exists():
            archive = data_dir / MANUAL
        _prepare(data_dir, archive)
    return _open(folder)


def _prepare(data_dir: Path, archive: Path | None) -> None:
    folder = data_dir / PREPARED
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        archive = archive or download(data_dir)
        print(f"preparing {folder} from {archive} (once, about a minute)", file=sys.stderr)
        builder = Builder(data_dir, read_archive(archive))
        tfds.disable_progress_bar()
        # tfds prints "Unknown size" for this builder. It writes to a temporary folder, which it
        # renames at the end, so an incomplete folder never appears.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
        if not folder.exists():  # otherwise another process has just prepared it
            raise UserError(
                f"cannot write to {data_dir} ({error}); choose another --data-dir"
            ) from None
    finally:
        tfds.enable_progress_bar()


def _open(folder: Path) -> Any:
    info = folder / "dataset_info.json"
    try:
        file_format = json.loads(info.read_text()).get("fileFormat", "tfrecord")
        if file_format != "array_record":
            raise UserError(
                f"the data set in {folder} must be in the format array_record, but is in "
                f"{file_format}, which needs TensorFlow; move it, or choose another --data-dir"
            )
        builder = tfds.builder_from_directory(folder)
    except UserError:
        raise
    except Exception as error:  # damaged files make tfds raise exceptions of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{folder} must be a prepared data set, but {info.name} or another file is unreadable "
            f"({reason}); remove the folder and run again"
        ) from None
    sizes = {split: builder.info.splits[split].num_examples for split in builder.info.splits}
    if sizes != IMDB_SIZES:
        raise UserError(
            f"the data set in {folder} must hold {IMDB_SIZES}, but holds {sizes}; "
            "remove the folder and run again"
        )
    return builder


def read(builder: Any, split: str) -> Iterator[Review]:
    """Yields text and label of each review of a tfds split, in the order of the records.

    Raises:
      UserError: a file is missing or damaged, or a text is not UTF-8.
    """
    try:
        source = builder.as_data_source(split)
        for start in range(0, len(source), _READ_BATCH):
            keys = range(start, min(start + _READ_BATCH, len(source)))
            for key, item in zip(keys, source.__getitems__(keys), strict=True):
                # array_record returns this for a file that was cut after its first block.
                if item["text"] is None:
                    raise RuntimeError(f"record {key} of {split} has no text")
                text = decode_utf8(item["text"], f"record {key} of {split} in {builder.data_dir}")
                yield text, int(item["label"])
    except UserError:
        raise
    except Exception as error:  # array_record verifies checksums; tfds raises many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the data set in {builder.data_dir} is damaged ({reason}); "
            "remove the folder and run again"
        ) from None


def published() -> tuple[str, Any]:
    """Returns the URL of the archive, and the size and SHA-256 that tfds has registered for it."""
    [(url, info)] = (tfds.builder_cls("imdb_reviews").url_infos or {}).items()
    return url, info


def download(data_dir: Path) -> Path:
    """Returns the published archive, downloaded below `data_dir` unless it was downloaded before.

    Raises:
      UserError: the download fails, or its SHA-256 differs from the one that tfds has registered.
    """
    url, info = published()
    choices = (
        f"give a --data-dir with {PREPARED}, or give the archive as --archive FILE "
        f"or {data_dir / MANUAL}, or connect to the network"
    )
    downloads = data_dir / "downloads"
    if not any(downloads.glob("imdb_reviews/*aclImdb_v1*.tar.gz")):
        # tfds would retry for two minutes before it failed.
        if failure := _connection_failure(url):
            raise UserError(
                f"IMDB is not in {data_dir}, and {url} cannot be opened ({failure}); {choices}"
            )
        print(f"downloading {url} ({info.size})", file=sys.stderr)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        manager = tfds.download.DownloadManager(
            download_dir=downloads, url_infos={url: info}, dataset_name="imdb_reviews"
        )
        return Path(manager.download(url))
    except (requests.RequestException, DownloadError) as error:
        raise UserError(f"the download of {url} failed ({error}); {choices}") from None
    except NonMatchingChecksumError:
        raise UserError(
            f"the download of {url} must have SHA-256 {info.checksum}, but has another; {choices}"
        ) from None


def _connection_failure(url: str) -> str | None:
    """Returns the reason why `url` cannot be opened, within seconds, or None if it can."""
    failures = [f"no response in {_PROBE_SECONDS} s"]

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_PROBE_SECONDS):
                failures.clear()
        except (OSError, http.client.HTTPException) as error:
            failures[0] = str(error)

    # In a thread, because the timeout of urlopen does not apply to the DNS look-up.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return failures[0] if failures else None
