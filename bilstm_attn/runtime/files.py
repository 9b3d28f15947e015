"""Files: atomic writes, SHA-256 digests, UTF-8 decoding, and the folders of caches and recipes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bilstm_attn.errors import UserError

DISK_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@contextlib.contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Converts any error while `path` is written into a one-line `UserError` with advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # orbax reports a full disk with half a dozen exception types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        full = [phrase for phrase in DISK_FULL if phrase in reason]
        advice = "free some space" if full else "fix that, or choose another folder"
        raise UserError(
            f"cannot save {path}: {full[0] if full else reason.splitlines()[0]}; everything saved "
            f"earlier is intact: {advice}, then run again (a training with --resume)"
        ) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, completely or not at all.

    Raises:
      UserError: the file cannot be written; its previous content is unchanged.
    """
    partial = path.with_name(f"{path.name}.partial")
    with report_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def bytes_sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` in hexadecimal, as do all functions below."""
    return hashlib.sha256(data).hexdigest()


def text_sha256(*parts: str) -> str:
    """Returns the SHA-256 of strings, joined by NUL characters."""
    return bytes_sha256("\0".join(parts).encode())


def json_sha256(value: Any, *, sort_keys: bool = False) -> str:
    """Returns the SHA-256 of the JSON text of `value`."""
    return bytes_sha256(json.dumps(value, sort_keys=sort_keys).encode())


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(tree: Any) -> str:
    """Returns the SHA-256 of the names, types, shapes and bytes of a tree's arrays."""
    import jax  # imported here, since `--help` must not wait for jax
    import numpy as np

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def default_cache_dir() -> Path:
    """Returns the folder `bilstm_attn` in the user's cache folder.

    Raises:
      UserError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilstm_attn"
    except RuntimeError:  # HOME is not set and the user database has no entry
        raise UserError(
            "caches need a home folder, and this user has none; set XDG_CACHE_HOME"
        ) from None


def recipes_folder() -> Path:
    """Returns the recipes folder: `configs` in a checkout, `recipes` in an installed package."""
    package = Path(__file__).parent.parent
    checkout = package.parent
    is_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir()
    return checkout / "configs" if is_checkout else package / "recipes"


def decode_utf8(data: bytes, origin: str) -> str:
    """Decodes UTF-8; `origin` names the data in the error.

    Raises:
      UserError: `data` is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin} must be UTF-8, but byte {error.start} is 0x{data[error.start]:02x}; "
            "convert it, for example with iconv -t UTF-8"
        ) from None
