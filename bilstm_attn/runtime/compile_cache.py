"""JAX's persistent compilation cache."""

import contextlib
import platform
import re
import stat
from collections.abc import Callable
from pathlib import Path

import jax

from bilstm_attn.runtime.files import default_cache_dir, text_sha256

MAX_CACHE_BYTES = 2**30  # bytes


def enable_compile_cache(notify: Callable[[str], None]) -> None:
    """Lets jax keep what it compiles, up to a gigabyte, so that the next run starts in seconds.

    Where JAX_COMPILATION_CACHE_DIR says another place, that is taken.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = default_cache_dir() / "compiled" / cpu_digest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            notify(f"what is compiled is not kept ({error}); set XDG_CACHE_HOME")
        else:
            evict_least_recently_used(folder, MAX_CACHE_BYTES)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def evict_least_recently_used(folder: Path, most_bytes: int) -> None:
    """Deletes the files of a folder that were used longest ago, beyond `most_bytes`.

    jax's own limit loses its way where a process was killed while it wrote an entry.
    """
    used = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has deleted it
            about = path.stat()
            if stat.S_ISREG(about.st_mode):
                used.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    for _, size, path in sorted(used, reverse=True):
        most_bytes -= size
        if most_bytes < 0:
            with contextlib.suppress(OSError):
                path.unlink()


def cpu_digest() -> str:
    """Returns a digest of what this machine's CPU can do."""
    cpu, features = Path("/proc/cpuinfo"), [platform.processor()]
    if cpu.exists():
        features = re.findall(r"^(?:model name|flags|Features)\s*:.*$", cpu.read_text(), re.M)[:2]
    return text_sha256(platform.machine(), *features)[:16]
