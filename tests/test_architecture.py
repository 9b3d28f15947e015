"""The house: imports go down the list of rooms, and only the named room touches a library."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bilstm_attn"

# Reading order. A file imports only files above it.
ROOMS = [
    "errors",
    "types",
    "registry",
    "config",
    "process",
    "text",
    "vectors",
    "terminal",
    "data.imdb",
    "data.sources",
    "data.cache",
    "data.batches",
    "dropout",
    "derivatives",
    "products",
    "kernels.native",
    "kernels.step",
    "kernels.pallas_gpu",
    "kernels.pallas_tpu",
    "kernels.pallas",
    "recurrence",
    "cells",
    "encoder",
    "attention",
    "pooling",
    "model",
    "objectives",
    "optim",
    "metrics",
    "linear",
    "sharding",
    "cluster",
    "checkpoint",
    "evaluate",
    "predict",
    "run",
    "report",
    "train_step",
    "interruption",
    "step_log",
    "member",
    "train",
    "backend",
    "session",
    "verify",
    "explain.chance",
    "explain.subsets",
    "explain.attribution",
    "explain.faithfulness",
    "explain.agreement",
    "explain.jain_wallace",
    "explain.naive",
    "explain.wiegreffe_pinter",
    "explain.reviews",
    "explain.page",
    "explain.picture",
    "explain.session",
    "explain.examine",
    "explain.findings",
    "explain.figures",
    "explain.report",
    "explain.kept",
    "explain.subject",
    "explain.companions",
    "explain.examination",
    "benchmark.peer",
    "benchmark.ours",
    "benchmark.flax_peer",
    "benchmark.cudnn_peer",
    "benchmark.keras_peer",
    "benchmark.torch_peer",
    "benchmark.peers",
    "benchmark.worker",
    "benchmark.compare",
]
LIBRARIES = {
    "tensorflow_datasets": {"data.imdb"},
    "array_record": {"data.imdb"},
    "orbax": {"checkpoint"},
    "safetensors": {"checkpoint"},
    "matplotlib": {"report", "explain.picture", "explain.figures"},
    "sklearn": {"linear"},
    "scipy": {"linear", "explain.agreement"},
    "tyro": {"terminal"},
    "markdown_it": {"explain.report"},
    "optax": {
        "objectives",
        "optim",
        "train_step",
        "explain.jain_wallace",
        "explain.naive",
        "explain.wiegreffe_pinter",
        "benchmark.flax_peer",
        "benchmark.cudnn_peer",
    },
    "flax": {
        "cells",
        "encoder",
        "attention",
        "pooling",
        "model",
        "benchmark.ours",
        "benchmark.flax_peer",
        "benchmark.cudnn_peer",
    },
}


def imports(room):
    """Returns the modules that a file imports, anywhere in it."""
    tree = ast.parse((PACKAGE / f"{room.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_file_is_a_room():
    files = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert files == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_the_list(room):
    own = {name.removeprefix("bilstm_attn.") for name in imports(room)} & set(ROOMS)
    allowed = set(ROOMS[: ROOMS.index(room)])
    if room == "data.sources":  # late, since tfds is slow to import and may be missing
        allowed |= {"data.imdb"}
    assert own <= allowed


@pytest.mark.parametrize("room", ROOMS)
def test_only_the_named_room_touches_a_library(room):
    used = {name.split(".")[0] for name in imports(room)} & set(LIBRARIES)
    assert {library for library in used if room not in LIBRARIES[library]} == set()
