"""IMDB through tensorflow-datasets, without TensorFlow: prepare once, then read.

The stock builder opens the archive through TensorFlow; this one reads it with `tarfile` and writes
the same layout, which the stock reader reads. The order of the records is tfds's: by a hash of the
path in the archive, so that it is the same everywhere. Imported late, by `sources.py`: it is slow.
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

import array_record.python.array_record_module  # noqa: F401  # tfds imports it late: fail early
import requests
import tensorflow_datasets as tfds
from rich.console import Console as RichConsole
from rich.progress import track
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import decode_utf8

# Reviews of each split, named as tfds names them; half of a labelled one is positive.
IMDB_SIZES = {"train": 25_000, "test": 25_000, "unsupervised": 50_000}
PREPARED = Path("imdb_reviews", "plain_text", "1.0.0")
MANUAL = Path("downloads", "manual", "aclImdb_v1.tar.gz")

_PROBE_SECONDS = 8
_BATCH = 1000  # records read at a time; one by one takes three times as long
_LABELS = {"neg": 0, "pos": 1, "unsup": -1}
# Not the `._*` files that some systems add to archives.
_MEMBER = re.compile(r"(?:\./)?(aclImdb/(train|test)/(neg|pos|unsup)/\d+_\d+\.txt)")

Review = tuple[str, int]
Reviews = dict[str, dict[str, Review]]  # split → path in the archive → text and label


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what tfds's own `imdb_reviews/plain_text:1.0.0` would."""

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
    """Returns all reviews of `aclImdb_v1.tar.gz`.

    Raises:
      UserError: the file is missing, damaged, or not the whole archive of IMDB reviews.
    """
    if not archive.is_file():
        raise UserError(f"archive {archive} is not a file; give the path of aclImdb_v1.tar.gz")
    reviews: Reviews = {split: {} for split in IMDB_SIZES}
    try:
        with tarfile.open(archive) as tar:
            for member in _progress(tar, "reading the archive", sum(IMDB_SIZES.values())):
                match = _MEMBER.fullmatch(member.name)
                if match and (file := tar.extractfile(member)):
                    path, split, kind = match.groups()
                    # Stripped as bytes, as tfds does: str.strip would take more.
                    text = decode_utf8(file.read().strip(), f"{path} in {archive}")
                    name = "unsupervised" if kind == "unsup" else split
                    reviews[name][path] = text, _LABELS[kind]
            # The gzip checksum stands at the end, past the last member.
            while tar.fileobj and tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise UserError(
            f"archive {archive} cannot be read ({reason}): it must be a whole .tar.gz file; "
            "fetch aclImdb_v1.tar.gz again"
        ) from None
    _check(reviews, archive)
    return reviews


def _check(reviews: Reviews, archive: Path) -> None:
    for split, expected in IMDB_SIZES.items():
        labels = [label for _, label in reviews[split].values()]
        wanted, came = f"{expected:,} reviews", f"{len(labels):,}"
        right = len(labels) == expected
        if split != "unsupervised":
            wanted += ", half of them positive"
            came += f" with {labels.count(1):,} positive"
            right = right and 2 * labels.count(1) == expected
        if not right:
            raise UserError(
                f"archive {archive} must hold {wanted}, below aclImdb/ for {split}, "
                f"but holds {came}; fetch the published aclImdb_v1.tar.gz"
            )


def open_data_set(data_dir: Path, archive: Path | None = None) -> Any:
    """Returns tfds's builder of the prepared data set below `data_dir`.

    If there is none, prepares it: from `archive`, else from the one in tfds's folder for manual
    downloads, else from a download.

    Raises:
      UserError: there is no way to the data, or what was found is not the whole data set.
    """
    folder = data_dir / PREPARED
    if folder.exists():
        if archive:
            print(f"{folder} is prepared: archive {archive} is not needed", file=sys.stderr)
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
        print(f"preparing {folder} from {archive}, once (a minute)", file=sys.stderr)
        builder = Builder(data_dir, read_archive(archive))
        tfds.disable_progress_bar()
        # tfds prints sizes that it does not know. It writes to a temporary folder and renames it at
        # the end, so the folder appears complete or not at all.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        # Another process may have finished first.
        if not folder.exists():
            raise UserError(
                f"cannot write to {data_dir} ({error}); give another --data-dir"
            ) from None
    finally:
        tfds.enable_progress_bar()


def _open(folder: Path) -> Any:
    info = folder / "dataset_info.json"
    try:
        file_format = json.loads(info.read_text()).get("fileFormat", "tfrecord")
        if file_format != "array_record":
            raise UserError(
                f"the data set in {folder} must be prepared as array_record, but is {file_format}, "
                "which needs TensorFlow to read; move it away, or give another --data-dir"
            )
        builder = tfds.builder_from_directory(folder)
    except UserError:
        raise
    except Exception as error:  # whatever damaged descriptions make tfds raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{folder} is not a prepared data set: {info.name} or another file is unreadable "
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
    """Returns text and label of the reviews of a tfds split, in the order of the records.

    Raises:
      UserError: a file is missing or damaged, or a text is not UTF-8.
    """
    try:
        source = builder.as_data_source(split)
        for start in range(0, len(source), _BATCH):
            keys = range(start, min(start + _BATCH, len(source)))
            for key, item in zip(keys, source.__getitems__(keys), strict=True):
                # So array_record reads a file that ends after its first block.
                if item["text"] is None:
                    raise RuntimeError(f"record {key} of {split} is empty")
                text = decode_utf8(item["text"], f"record {key} of {split} in {builder.data_dir}")
                yield text, int(item["label"])
    except UserError:
        raise
    except Exception as error:  # array_record checks every chunk; tfds raises all sorts
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the data set in {builder.data_dir} is damaged ({reason}); "
            "remove the folder and run again"
        ) from None


def published() -> tuple[str, Any]:
    """Returns the archive's address, and the size and checksum that tfds has registered for it."""
    [(url, info)] = (tfds.builder_cls("imdb_reviews").url_infos or {}).items()
    return url, info


def download(data_dir: Path) -> Path:
    """Returns the published archive, downloaded below `data_dir` unless it is there already.

    Raises:
      UserError: the network gives no archive, or another one than tfds has registered.
    """
    url, info = published()
    ways_out = (
        f"give a --data-dir that holds {PREPARED}, or the archive by --archive FILE "
        f"or as {data_dir / MANUAL}, or network access"
    )
    downloads = data_dir / "downloads"
    if not any(downloads.glob("imdb_reviews/*aclImdb_v1*.tar.gz")):
        # tfds would try again for two minutes before it gave up.
        if failure := _failure(url):
            raise UserError(f"no IMDB in {data_dir}, and {url} fails ({failure}); {ways_out}")
        print(f"downloading {url} ({info.size})", file=sys.stderr)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        manager = tfds.download.DownloadManager(
            download_dir=downloads, url_infos={url: info}, dataset_name="imdb_reviews"
        )
        return Path(manager.download(url))
    except (requests.RequestException, DownloadError) as error:
        raise UserError(f"the download of {url} failed ({error}); {ways_out}") from None
    except NonMatchingChecksumError:
        raise UserError(
            f"what came from {url} must have SHA-256 {info.checksum}, but has another; {ways_out}"
        ) from None


def _failure(url: str) -> str | None:
    """Returns why `url` cannot be opened, within seconds, or None if it can."""
    failures = [f"no answer in {_PROBE_SECONDS} s"]

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=_PROBE_SECONDS):
                failures.clear()
        except (OSError, http.client.HTTPException) as error:
            failures[0] = str(error)

    # In a thread, since the timeout does not hold for looking up the host's name.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return failures[0] if failures else None
