"""JAX's persistent compilation cache."""

import contextlib
import platform
import re
import stat
from collections.abc import Callable
from pathlib import Path

import jax

from bilstm_attn.runtime.files import default_cache_dir, text_sha256

MAX_CACHE_BYTES = 2**30


def enable_compile_cache(notify: Callable[[str], None]) -> None:
    """Makes JAX cache compiled programs on disk, so that the next run starts in seconds.

    The cache holds at most `MAX_CACHE_BYTES`. A folder set in JAX_COMPILATION_CACHE_DIR takes
    precedence and is left to JAX. `notify` prints one line if the folder cannot be made.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = default_cache_dir() / "compiled" / cpu_digest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            notify(f"compiled programs are not cached ({error}); set XDG_CACHE_HOME")
        else:
            evict_least_recently_used(folder, MAX_CACHE_BYTES)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def evict_least_recently_used(folder: Path, max_bytes: int) -> None:
    """Deletes least recently used files until the folder's files take at most `max_bytes`.

    JAX's own size limit stops working once a process was killed while it wrote an entry.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # deleted meanwhile by another process
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total_bytes = 0
    for _, size, path in sorted(files, reverse=True):
        total_bytes += size
        if total_bytes > max_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def cpu_digest() -> str:
    """Returns a digest of the CPU's model and instruction sets."""
    cpu, features = Path("/proc/cpuinfo"), [platform.processor()]
    if cpu.exists():
        features = re.findall(r"^(?:model name|flags|Features)\s*:.*$", cpu.read_text(), re.M)[:2]
    return text_sha256(platform.machine(), *features)[:16]
