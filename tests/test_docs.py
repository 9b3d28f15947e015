"""The documentation: length, links, the map of files, option names, and executable code."""

import csv
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_tables import plugin_scope
from tiny_run import made_up_reviews, reviews, tiny_run, train

from bilstm_attn import testing

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def python_blocks(path: Path) -> list[tuple[str, str]]:
    """Returns the title and the code of every Python block of a page."""
    return re.findall(r"^```python(?: title=(\S+))?\n(.*?)^```", path.read_text(), re.M | re.S)


def test_readme_is_at_most_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@page
def test_links_point_to_existing_files(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@page
def test_no_renamed_option_or_script_is_mentioned(path):
    old_names = (
        "validation-reviews train-reviews model.products recompute-gates each-epoch examine.py"
    )
    pattern = "|".join([r"--few\b", *map(re.escape, old_names.split())])
    assert re.findall(pattern, path.read_text()) == []


def test_architecture_page_lists_the_files_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "bilstm_attn"
    files = {path.name for path in package.rglob("*") if path.suffix in (".py", ".cpp")}
    assert {name for name in files - {"__init__.py"} if f"`{name}`" not in text} == set()
    named = set(re.findall(r"`(\w+\.(?:py|cpp))`", text))
    assert named <= files


def test_ci_extracts_the_commands_of_the_readme():
    process = subprocess.run(
        [sys.executable, ROOT / ".ci" / "blocks.py", ROOT / "README.md"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stdout.splitlines()
    assert "pip install -e '.[test]' && pytest" in lines
    assert [line.split()[1] for line in lines if line.startswith("python ")] == [
        f"scripts/{name}.py" for name in ("evaluate", "predict", "explain", "report")
    ]


def test_readme_code_runs(tmp_path):
    blocks = [text for _, text in python_blocks(ROOT / "README.md")]
    # The block that trains needs real reviews; CI runs it.
    code = "\n".join(text for text in blocks if "bilstm_attn.train(" not in text)
    assert len(blocks) >= 2
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


@pytest.fixture
def no_plugins() -> Iterator[None]:
    """Unloads the plug-ins of a test after it."""
    with plugin_scope():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "flags"),
    [
        ("peephole.py", ["--model.cell", "peephole"]),
        (
            "convolution.py",
            ["--model.encoder", "convolution", "--model.encoder-options", "width", 3],
        ),
        (
            "small_logits.py",
            ["--train.objective", "small_logits", "--train.objective-options", "weight", 0.1],
        ),
        ("tickets.py", ["--data.dataset", "tickets"]),
        (
            "punctuation.py",
            ["--data.tokeniser", "punctuation", "--data.tokeniser-options", "lower", False],
        ),
    ],
)
def test_plugins_of_the_extension_guide_train(title, flags, untrained, no_plugins):
    code = dict(python_blocks(ROOT / "docs" / "extending.md"))[title]
    (untrained / title).write_text(code)
    with (untrained / "tickets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "urgent"), *reviews("train")])
    flags = ["--data-dir", untrained, "--plugin", untrained / title, *flags]
    with made_up_reviews():
        assert train(untrained, "--name", "tiny", *flags) == 0
    assert tiny_run(untrained).model.is_file()


@pytest.mark.parametrize(
    ("title", "check"),
    [
        ("small_logits.py", lambda module: testing.check_objective(module.SmallLogits)),
        ("tickets.py", lambda module: testing.check_source(module.Tickets)),
        ("punctuation.py", lambda module: testing.check_tokeniser(module.Punctuation)),
    ],
)
def test_plugins_of_the_guide_pass_their_contract_tests(title, check, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").write_text("text,urgent\nthe cable is lost,1\nhello,0\n")
    module = types.ModuleType(title)
    exec(dict(python_blocks(ROOT / "docs" / "extending.md"))[title], vars(module))
    check(module)
