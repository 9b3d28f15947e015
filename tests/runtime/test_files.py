"""Files: atomic writes on full disks, and digests of trees."""

import errno
import os

import numpy as np
import pytest
from tiny_run import error_of, full_disk

from bilstm_attn.errors import UserError
from bilstm_attn.runtime import files
from bilstm_attn.runtime.files import tree_sha256, write_atomically


def test_full_disk_leaves_the_previous_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"previous")
    with full_disk(100), pytest.raises(UserError, match=r"File too large.* free some space"):
        write_atomically(path, bytes(101))
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_error_for_a_full_disk_says_what_is_intact_and_what_to_do(tmp_path, monkeypatch):
    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fail)
    assert error_of(write_atomically, tmp_path / "file", b"data") == (
        f"cannot save {tmp_path / 'file'}: No space left on device; everything saved earlier is "
        "intact: free some space, then run again (a training with --resume)"
    )
    assert list(tmp_path.iterdir()) == []


def test_error_for_a_path_that_cannot_be_written_advises_another_folder(tmp_path):
    (tmp_path / "file").touch()
    message = error_of(write_atomically, tmp_path / "file" / "inner", b"data")
    assert "Not a directory; " in message
    assert "choose another folder" in message
    assert "free some space" not in message


@pytest.mark.parametrize(
    "changed",
    [
        {"a": np.float32([1, 2])},
        {"b": np.float32([1, 3])},
        {"a": np.float64([1, 3])},
        {"a": np.float32([[1], [3]])},
        {"a": np.float32([1, 3]), "b": np.float32([])},
    ],
)
def test_digest_of_a_tree_depends_on_names_types_shapes_and_values(changed):
    assert tree_sha256({"a": np.float32([1, 3])}) != tree_sha256(changed)
