"""The layers of the package, and the files that may import each external library."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bilstm_attn"

# In reading order: each layer imports only from the layers before it. "" is the top folder.
LAYERS = [
    "",
    "runtime",
    "data",
    "nn",
    "inference",
    "training",
    "explain",
    "studies",
    "baselines",
    "benchmark",
    "interface",
    "command_line",
]
# Files of the top folder that may import from all layers before "interface".
INTERFACE = {"api", "testing"}
# The only files that may import each library, as paths below the package.
STUDY = "studies/attention_as_explanation"
LIBRARIES = {
    "tensorflow_datasets": {"data/imdb"},
    "array_record": {"data/imdb"},
    "orbax": {"training/checkpoint"},
    "safetensors": {"inference/exported"},
    "matplotlib": {"training/run_table", "explain/image", f"{STUDY}/figures"},
    "sklearn": {"baselines/linear"},
    "scipy": {"baselines/linear", "explain/agreement"},
    "tyro": {"runtime/cli"}
    | {f"command_line/{path.stem}" for path in (PACKAGE / "command_line").glob("*_cli.py")},
    "markdown_it": {f"{STUDY}/report"},
    "optax": {
        "nn/tasks",
        "training/optim",
        "training/step",
        f"{STUDY}/jain_wallace",
        f"{STUDY}/reference_loops",
        f"{STUDY}/wiegreffe_pinter",
        "benchmark/flax_peer",
        "benchmark/cudnn_peer",
    },
    "flax": {
        "nn/cells",
        "nn/encoder",
        "nn/attention",
        "nn/backend",
        "nn/pooling",
        "nn/model",
        "benchmark/ours",
        "benchmark/flax_peer",
        "benchmark/cudnn_peer",
    },
}
FILES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


def imports(file: str) -> set[str]:
    """Returns the modules that a file imports, at the top or within functions."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{file}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(file: str) -> str:
    if file in INTERFACE:
        return "interface"
    return file.split("/")[0] if "/" in file else ""


def test_every_folder_is_a_layer():
    assert {layer(file) for file in FILES} == set(LAYERS)


@pytest.mark.parametrize("file", FILES)
def test_imports_only_from_layers_above(file):
    names = {name.removeprefix("bilstm_attn.").replace(".", "/") for name in imports(file)}
    allowed = LAYERS[: LAYERS.index(layer(file)) + 1]
    assert {name for name in names & set(FILES) if layer(name) not in allowed} == set()


@pytest.mark.parametrize("file", FILES)
def test_only_listed_files_import_a_library(file):
    used = {name.split(".")[0] for name in imports(file)} & set(LIBRARIES)
    assert {library for library in used if file not in LIBRARIES[library]} == set()


def test_no_two_files_share_a_name():
    counts = Counter(file.rsplit("/", 1)[-1] for file in FILES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_importing_the_model_loads_neither_terminal_nor_data_sources_nor_pallas():
    # Flax itself imports rich, so this checks the file of the package that imports rich.
    code = (
        "import sys, bilstm_attn.nn.model\n"
        "heavy = ('bilstm_attn.runtime.console', 'tyro', 'tensorflow_datasets', "
        "'bilstm_attn.data.sources', 'jax.experimental.pallas', 'orbax')\n"
        "print(*[name for name in heavy if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert process.stdout.split() == []
