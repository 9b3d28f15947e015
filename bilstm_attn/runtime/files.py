"""Files: atomic writes, SHA-256 digests, UTF-8 decoding, and the cache folder."""

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
    """Turns any error while writing `path` into a one-line `UserError` that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # orbax wraps a full disk in half a dozen types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        full = [words for words in DISK_FULL if words in reason]
        advice = "free some space" if full else "fix that, or choose another folder"
        raise UserError(
            f"cannot save {path}: {full[0] if full else reason.splitlines()[0]}; everything saved "
            f"earlier is intact: {advice}, then run again, a training with --resume"
        ) from None


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, completely or not at all.

    Raises:
      UserError: the file cannot be written; its previous content is still there.
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
    """Returns the SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def text_sha256(*parts: str) -> str:
    """Returns the SHA-256 of strings, with a NUL between each two."""
    return bytes_sha256("\0".join(parts).encode())


def json_sha256(value: Any, *, sort_keys: bool = False) -> str:
    """Returns the SHA-256 of `value` as JSON."""
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
    import jax  # here, so that `--help` need not wait for it
    import numpy as np

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def default_cache_dir() -> Path:
    """Returns `bilstm_attn` in the user's cache folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bilstm_attn"
    except RuntimeError:  # no HOME, and no entry of the user's
        raise UserError("there is no home folder to keep caches in; set XDG_CACHE_HOME") from None


def recipes_folder() -> Path:
    """Returns the folder of the recipes: `configs` of a checkout, or the copy in the wheel."""
    package = Path(__file__).parent.parent
    checkout = package.parent
    is_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir()
    return checkout / "configs" if is_checkout else package / "recipes"


def decode_utf8(data: bytes, origin: str) -> str:
    """Returns `data` as text; `origin` names it in the error.

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
