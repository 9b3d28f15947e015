"""The strict harness: checked shapes, no silent broadcasting, several virtual devices."""

import importlib.metadata
import os
import shutil
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # the tolerances are those of float32 on a CPU
# Most of the time is compilation: the same programs, but less is spent on each. jax 0.10 can
# still leave out the newer, slower of its code generators, the one that jax 0.11 has alone.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *["--xla_cpu_use_fusion_emitters=false"]
        * importlib.metadata.version("jax").startswith("0.10."),
    ]
)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 4  # and stays so, whatever a test asks for
install_import_hook("bilstm_attn", "beartype.beartype")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with "cache", and a finished run in "runs"/tiny; copy before changing it."""
    from tiny_run import train_once  # after the hook, which must see the package's first import

    return train_once(tmp_path_factory)


@pytest.fixture
def trained_copy(trained, tmp_path, monkeypatch) -> Path:
    """A copy that the test may change; it is also the working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def untrained(trained, tmp_path, monkeypatch) -> Path:
    """A folder with the finished "cache" and no run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "cache").symlink_to(trained / "cache")
    return tmp_path / "untrained"
