"""IMDB through tensorflow-datasets: texts, order, and the error for each damaged or absent file."""

import functools
import hashlib
import http.server
import io
import json
import random
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
from tensorflow_datasets.core.download.checksums import UrlInfo, compute_url_info
from tiny_run import error_reading

from bilstm_attn.data import imdb
from bilstm_attn.data.sources import SPLITS, Imdb
from bilstm_attn.errors import UserError

SIZES = {"train": 6, "test": 4, "unsupervised": 3}
LABELS = {"pos": 1, "neg": 0, "unsup": -1}
MEMBERS = {
    "train/pos/0_9.txt": b"good, \xc3\xa9t\xc3\xa9<br />",
    "train/pos/1_7.txt": b" \ttwo\n",
    "train/pos/2_10.txt": b"three\xc2\x85",  # removed by str.strip, not by bytes.strip
    "train/neg/0_1.txt": b"bad",
    "train/neg/1_2.txt": b"worse\r\nthan bad",
    "train/neg/2_4.txt": b"",
    "test/pos/0_8.txt": b"five",
    "test/pos/1_10.txt": b"six",
    "test/neg/0_3.txt": b"seven",
    "test/neg/1_1.txt": b"eight",
    **{f"train/unsup/{i}_0.txt": f"unlabelled {i}".encode() for i in range(3)},
}
OTHER_MEMBERS = {"README": b"read me", "train/urls_pos.txt": b"u", "train/pos/._0_9.txt": b"\xff"}


@pytest.fixture(autouse=True)
def _small_imdb(monkeypatch, tmp_path):
    monkeypatch.setattr(imdb, "IMDB_SIZES", SIZES)
    monkeypatch.setattr(imdb, "published", lambda: pytest.fail("used the network"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # tfds leaves an empty temporary folder for every builder.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def pack(path: Path, members=MEMBERS, root="aclImdb/", seed=0) -> Path:
    """Writes an archive like aclImdb_v1.tar.gz, with its members in a random order."""
    names = sorted(members)
    random.Random(seed).shuffle(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(root + name)
            member.size = len(members[name])
            tar.addfile(member, io.BytesIO(members[name]))
    return path


def expected(split: str) -> list[tuple[str, int]]:
    """Returns the reviews of a split in the order of tfds: by MD5 of the split's name and path."""
    name = "unsupervised" if split == "unlabelled" else split
    folders = ("train/unsup/",) if name == "unsupervised" else (f"{name}/pos/", f"{name}/neg/")
    keys = [f"aclImdb/{key}" for key in MEMBERS if key.startswith(folders)]
    keys.sort(key=lambda key: hashlib.md5(f"{name}{key}".encode()).hexdigest())
    texts = [MEMBERS[key.removeprefix("aclImdb/")].strip().decode() for key in keys]
    return list(zip(texts, [LABELS[key.split("/")[2]] for key in keys], strict=True))


def read_all(source) -> dict[str, list[tuple[str, int]]]:
    return {split: list(source.read(split)) for split in source.splits}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data_dir with the small data set, prepared once; tests must not change it."""
    data_dir = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imdb, "IMDB_SIZES", SIZES)
        patch.setattr(tempfile, "tempdir", str(data_dir))
        Imdb(data_dir, pack(data_dir / "small.tar.gz")).size("train")
    return data_dir


@pytest.fixture
def prepared_copy(prepared, tmp_path) -> Path:
    """The folder of a prepared data set that the test may change, below tmp_path / "copy"."""
    folder = tmp_path / "copy" / imdb.PREPARED
    folder.mkdir(parents=True)
    for path in (prepared / imdb.PREPARED).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# Texts and their order


def test_reviews_are_those_of_the_archive_in_tfds_order(prepared):
    source = Imdb(prepared)
    assert read_all(source) == {split: expected(split) for split in SPLITS}
    assert [source.size(split) for split in SPLITS] == [6, 4, 3]


@pytest.mark.parametrize("members", [{}, OTHER_MEMBERS])
@pytest.mark.parametrize("root", ["aclImdb/", "./aclImdb/"])
def test_order_does_not_depend_on_the_order_of_the_archive(prepared, tmp_path, root, members):
    archive = pack(tmp_path / "other.tar.gz", MEMBERS | members, root, seed=1)
    assert read_all(Imdb(tmp_path / "data", archive)) == read_all(Imdb(prepared))


def test_reviews_do_not_depend_on_the_read_batch(prepared, monkeypatch):
    monkeypatch.setattr(imdb, "_READ_BATCH", 4)
    assert list(Imdb(prepared).read("train")) == expected("train")


def test_prepared_data_set_is_preferred_to_the_archive(prepared, capsys):
    assert list(Imdb(prepared, Path("nowhere.tar.gz")).read("test")) == expected("test")
    assert "is already prepared; nowhere.tar.gz is not read" in capsys.readouterr().err


def test_archive_in_the_folder_for_manual_downloads_is_read(tmp_path):
    pack(tmp_path / "downloads" / "manual" / "aclImdb_v1.tar.gz")
    assert list(Imdb(tmp_path).read("test")) == expected("test")


def test_environment_variable_of_tfds_sets_the_default_data_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert list(Imdb().read("train")) == expected("train")


def test_error_of_an_unknown_split_lists_the_splits(prepared):
    assert "choose test, train, unlabelled" in error_reading(Imdb(prepared), "tests")


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, OSError("disk full"), RuntimeError("disk full")]
)
def test_interrupted_preparation_leaves_no_file(tmp_path, monkeypatch, failure):
    def generate(self, split):
        yield "key", {"text": "text", "label": 1}
        raise failure

    archive = pack(tmp_path / "small.tar.gz")
    with monkeypatch.context() as patch:
        patch.setattr(imdb.Builder, "_generate_examples", generate)
        with pytest.raises((KeyboardInterrupt, UserError), match=r"disk full|^$"):
            Imdb(tmp_path, archive).size("train")
    assert list((tmp_path / imdb.PREPARED).parent.iterdir()) == []
    assert list(Imdb(tmp_path, archive).read("train")) == expected("train")


# Bad archives


def without(*names: str) -> dict[str, bytes]:
    return {name: text for name, text in MEMBERS.items() if name not in names}


def not_a_tar(path: Path) -> None:
    path.write_bytes(b"<html>404</html>" * 100)


def truncated(path: Path) -> None:
    # Random bytes do not compress, so the first half ends between members.
    noise = {f"noise{i}": random.Random(i).randbytes(100_000) for i in range(3)}
    whole = pack(path, MEMBERS | noise).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def without_its_checksum(path: Path) -> None:
    path.write_bytes(pack(path).read_bytes()[:-6])


def with_a_wrong_checksum(path: Path) -> None:
    data = bytearray(pack(path).read_bytes())
    data[-8] ^= 1  # in the checksum itself: a flip elsewhere may hit an unused byte
    path.write_bytes(data)


NOT_A_FILE = "must be a file, but is not; give the path of aclImdb_v1.tar.gz"
INCOMPLETE = "must be a complete .tar.gz file, but reading it failed ("
BAD_ARCHIVES = {
    "missing": (lambda path: None, NOT_A_FILE),
    "a folder": (Path.mkdir, NOT_A_FILE),
    "no tar": (not_a_tar, "); download aclImdb_v1.tar.gz again"),
    "truncated": (truncated, INCOMPLETE),
    "without its checksum": (without_its_checksum, INCOMPLETE),
    "with a wrong checksum": (with_a_wrong_checksum, INCOMPLETE),
    "without reviews": (
        functools.partial(pack, root="other/"),
        "must hold 6 reviews, half of them positive, for train below aclImdb/, but holds 0",
    ),
    "without a test review": (
        functools.partial(pack, members=without("test/pos/0_8.txt")),
        "for test below aclImdb/, but holds 3 with 1 positive",
    ),
    "unbalanced": (
        functools.partial(
            pack, members=without("train/pos/0_9.txt") | {"train/neg/7_1.txt": b"bad"}
        ),
        "for train below aclImdb/, but holds 6 with 2 positive",
    ),
    "without an unlabelled review": (
        functools.partial(pack, members=without("train/unsup/1_0.txt")),
        "must hold 3 reviews for unsupervised below aclImdb/, but holds 2",
    ),
    "not UTF-8": (
        functools.partial(pack, members=MEMBERS | {"train/neg/0_1.txt": b"caf\xe9"}),
        "aclImdb/train/neg/0_1.txt in",
    ),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archive_is_a_one_line_error(tmp_path, kind):
    make, expected_message = BAD_ARCHIVES[kind]
    archive = tmp_path / "bad.tar.gz"
    make(archive)
    message = error_reading(Imdb(tmp_path / "data", archive))
    assert str(archive) in message
    assert expected_message in message
    assert not (tmp_path / "data" / imdb.PREPARED).exists()


def test_unwritable_data_dir_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    message = error_reading(Imdb(tmp_path / "file" / "data", pack(tmp_path / "small.tar.gz")))
    assert message.startswith(f"cannot write to {tmp_path / 'file' / 'data'}")
    assert message.endswith("choose another --data-dir")


# Bad prepared data sets


def change_info(folder: Path, **changes) -> None:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_data_set_prepared_as_tfrecord_is_an_error(prepared_copy):
    change_info(prepared_copy, fileFormat="tfrecord")
    assert "must be in the format array_record, but is in tfrecord" in error_reading(
        Imdb(prepared_copy.parents[2])
    )


@pytest.mark.parametrize("info", [None, "{", "[]"])
def test_absent_or_invalid_data_set_metadata_is_an_error(prepared_copy, info):
    path = prepared_copy / "dataset_info.json"
    path.write_text(info) if info else path.unlink()
    message = error_reading(Imdb(prepared_copy.parents[2]))
    assert message.startswith(f"{prepared_copy} must be a prepared data set, but ")
    assert message.endswith("remove the folder and run again")


@pytest.mark.parametrize(
    ("name", "field"), [("dataset_info.json", "filepathTemplate"), ("features.json", "pythonClass")]
)
def test_renamed_field_in_the_data_set_metadata_is_an_error(prepared_copy, name, field):
    text = (prepared_copy / name).read_text()
    assert field in text
    (prepared_copy / name).write_text(text.replace(field, field.replace("p", "q")))
    message = error_reading(Imdb(prepared_copy.parents[2]))
    assert message.startswith(f"{prepared_copy} must be a prepared data set, but ")


def test_prepared_data_set_of_other_size_is_an_error(prepared, monkeypatch):
    monkeypatch.setattr(imdb, "IMDB_SIZES", SIZES | {"test": 5})
    assert "'test': 5, 'unsupervised': 3}, but holds {" in error_reading(Imdb(prepared))


@pytest.mark.parametrize("damage", ["missing", "truncated", "cut after the first block", "flipped"])
def test_damaged_records_are_an_error(prepared_copy, damage):
    [path] = prepared_copy.glob("*-train.array_record*")
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-100])
    elif damage == "cut after the first block":
        path.write_bytes(data[: 1 << 16])
    elif damage == "flipped":
        at = data.index(b"worse")
        path.write_bytes(data[:at] + b"W" + data[at + 1 :])
    assert "is damaged" in error_reading(Imdb(prepared_copy.parents[2]))


def test_record_that_is_not_utf8_is_an_error(prepared):
    class Source(list):
        def __getitems__(self, keys):
            return [self[key] for key in keys]

    class Builder:
        data_dir = "here"

        def as_data_source(self, split):
            return Source([{"text": b"good", "label": 1}, {"text": b"caf\xe9", "label": 0}])

    with pytest.raises(UserError, match="record 1 of train in here must be UTF-8"):
        list(imdb.read(Builder(), "train"))


def test_error_without_tfds_names_the_extra(monkeypatch):
    monkeypatch.delattr("bilstm_attn.data.imdb")
    monkeypatch.delitem(sys.modules, "bilstm_attn.data.imdb")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert error_reading(Imdb()).endswith("pip install -e '.[tfds]'")


# The network


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local HTTP server of an archive in tmp_path / "served", in place of the published one."""
    archive = pack(tmp_path / "served" / "aclImdb_v1.tar.gz")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/{archive.name}"
        # tfds caches downloads by URL in the process; each test has its own port, so its own URL.
        monkeypatch.setattr(imdb, "published", lambda: (url, compute_url_info(archive)))
        yield running
        running.shutdown()
        thread.join()


def test_published_archive_is_downloaded_and_prepared(server, tmp_path):
    assert read_all(Imdb(tmp_path / "data")) == {split: expected(split) for split in SPLITS}


def test_earlier_download_is_used_without_the_network(server, tmp_path, monkeypatch):
    url, info = imdb.published()
    archive = imdb.download(tmp_path / "data")
    assert archive.read_bytes() == (tmp_path / "served" / "aclImdb_v1.tar.gz").read_bytes()
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(imdb, "published", lambda: (url, info))
    assert list(Imdb(tmp_path / "data").read("test")) == expected("test")


def test_download_with_another_checksum_is_an_error(server, tmp_path, monkeypatch):
    url, info = imdb.published()
    other = UrlInfo(size=info.size, checksum="0" * 64, filename=info.filename)
    monkeypatch.setattr(imdb, "published", lambda: (url, other))
    message = error_reading(Imdb(tmp_path / "data"))
    assert f"must have SHA-256 {'0' * 64}" in message
    assert "--archive FILE" in message
    assert not (tmp_path / "data" / imdb.PREPARED).exists()


def test_interrupted_download_is_an_error(server, tmp_path, monkeypatch):
    def fail(self, url):
        raise imdb.requests.ConnectionError("connection lost")

    monkeypatch.setattr(imdb.tfds.download.DownloadManager, "download", fail)
    assert "failed (connection lost); give a --data-dir" in error_reading(Imdb(tmp_path / "data"))


@pytest.mark.parametrize("failure", ["refused", "404", "silent"])
def test_error_without_a_network_comes_soon_and_lists_the_choices(
    server, tmp_path, monkeypatch, failure
):
    url, info = imdb.published()
    if failure == "404":
        url = url.replace("aclImdb", "nothing")
    else:
        server.shutdown()  # the socket still listens, but nothing responds
        monkeypatch.setattr(imdb, "_PROBE_SECONDS", 0.3)
    if failure == "refused":
        server.server_close()
    monkeypatch.setattr(imdb, "published", lambda: (url, info))
    message = error_reading(Imdb(tmp_path / "data"))
    choices = [
        f"--data-dir with {imdb.PREPARED}",
        "--archive FILE",
        str(tmp_path / "data" / "downloads" / "manual" / "aclImdb_v1.tar.gz"),
        "connect to the network",
    ]
    assert [choice for choice in choices if choice not in message] == []
