"""The environment of a run: versions, devices, git revision, data and plug-ins."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from bilstm_attn import __version__
from bilstm_attn.runtime.plugins import loaded

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(devices: list[Any], data_sha256: str) -> dict[str, Any]:
    """Returns everything but the config that a result depends on, as plain JSON."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"bilstm_attn": __version__}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in devices],
        "processes": len({device.process_index for device in devices}),
        "git_revision": git_revision(Path(__file__).parent),
        "data_sha256": data_sha256,
        "plugins": loaded(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def git_revision(package: Path) -> str | None:
    """Returns the commit of the package's own checkout, `+changes` if files differ from it.

    None if the package is elsewhere, such as in the site-packages of another repository.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=package, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        project = (package.parent / "pyproject.toml").read_text()
        if Path(git("rev-parse", "--show-toplevel")) != package.parent.resolve():
            return None
        if 'name = "bilstm-attn"' not in project:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
