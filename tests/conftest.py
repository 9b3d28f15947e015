"""Settings of all tests: annotation checks, no rank promotion, four virtual devices; fixtures."""

import importlib.metadata
import os
import shutil
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # tolerances are for float32 on CPU
# Most of the time is spent on compilation, so these flags select faster compilation. jax 0.10 can
# disable the fusion emitters, which compile more slowly; jax 0.11 cannot.
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
assert jax.device_count() == 4  # the number of devices is fixed from here on
install_import_hook("bilstm_attn", "beartype.beartype")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with "cache" and a finished run in "runs"/tiny; not to be changed."""
    from tiny_run import train_once  # imports the package, so only after the hook

    return train_once(tmp_path_factory)


@pytest.fixture
def trained_copy(trained, tmp_path, monkeypatch) -> Path:
    """A copy of `trained` that a test may change. The working folder is a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def untrained(trained, tmp_path, monkeypatch) -> Path:
    """A folder with "cache" and without a run. The working folder is a temporary folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "cache").symlink_to(trained / "cache")
    return tmp_path / "untrained"
