"""Plug-ins: loading, errors, and the record in runs and exports."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_tables import plugin_scope
from tiny_run import error_of, load_script, made_up_reviews, tiny_run, train

from bilstm_attn import testing
from bilstm_attn.inference.predict import Predictor
from bilstm_attn.nn import cells
from bilstm_attn.runtime import plugins
from bilstm_attn.training.environment import git_revision

LETTERS = Path(__file__).parents[1] / "support" / "letters.py"
GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
[PEEPHOLE] = re.findall(r"^```python title=peephole.py\n(.*?)^```", GUIDE.read_text(), re.M | re.S)


@pytest.fixture
def unload() -> Iterator[Callable[[], None]]:
    """Unloads every plug-in when called, and after the test."""
    with plugin_scope() as unload:
        yield unload


@pytest.fixture
def peephole(tmp_path, unload) -> Path:
    (tmp_path / "peephole.py").write_text(PEEPHOLE)
    return tmp_path / "peephole.py"


def test_plugin_cell_trains_and_is_recorded_in_run_and_export(peephole, untrained):
    assert train(untrained, "--name", "tiny", "--plugin", peephole, model__cell="peephole") == 0
    run = tiny_run(untrained)
    [record] = run.environment()["plugins"]
    assert record == {"path": str(peephole), "sha256": plugins.file_sha256(peephole)}
    assert b"peephole.py" in run.model.read_bytes()[:100_000]


@pytest.mark.slow
def test_plugin_tokeniser_trains_is_recorded_and_prediction_needs_it(tmp_path, untrained, unload):
    letters = Path(shutil.copy(LETTERS, tmp_path))
    flags = ["--name", "tiny", "--plugin", letters, "--data.tokeniser-options", "size", 2]
    with made_up_reviews():
        assert train(untrained, *flags, data__tokeniser="letters", train__epochs=1) == 0
    run = tiny_run(untrained)
    [record] = run.environment()["plugins"]
    assert record["sha256"] == plugins.file_sha256(letters)
    config = run.config().data
    assert (config.tokeniser, config.tokeniser_options) == ("letters", {"size": 2})
    text = "filmo!"
    [prediction] = Predictor(run.model)([text])
    words = [text[word.start : word.stop] for word in prediction.words]
    assert words == ["fi", "lm", "o!"]
    unload()
    message = error_of(Predictor, run.model)
    assert f"needs the plug-in letters.py (SHA-256 {record['sha256'][:12]}" in message
    assert message.endswith("give --plugin with its path")


@pytest.mark.slow
def test_without_the_plugin_every_command_names_it_and_its_digest(peephole, untrained, unload):
    flags = ["--name", "tiny", "--plugin", peephole]
    assert train(untrained, *flags, model__cell="peephole") == 0
    run, digest = tiny_run(untrained), plugins.file_sha256(peephole)[:12]
    unload()
    cache = ["--cache", untrained / "cache"]
    for call in (
        lambda: load_script("predict")(run.folder, "filmo brillo"),
        lambda: load_script("evaluate")(run.folder, "--split", "validation", *cache),
        lambda: load_script("explain")(run.folder, "--split", "validation", *cache),
        lambda: load_script("train")("--verify", run.folder, *cache),
        lambda: train(untrained, "--name", "tiny", "--resume", model__cell="peephole"),
    ):
        message = error_of(call)
        assert "needs the plug-in peephole.py" in message
        assert digest in message
        assert "give --plugin" in message
    assert load_script("predict")(run.folder, "--plugin", peephole, "filmo brillo") == 0


@pytest.mark.slow
def test_a_changed_plugin_is_reported(peephole, untrained, unload, capsys):
    flags = ["--name", "tiny", "--plugin", peephole]
    assert train(untrained, *flags, model__cell="peephole") == 0
    unload()
    peephole.write_text(PEEPHOLE + "\n# changed\n")
    capsys.readouterr()
    assert (
        load_script("predict")(tiny_run(untrained).folder, "--plugin", peephole, "filmo brillo")
        == 0
    )
    assert "plug-in peephole.py has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ValueError('bad day')", "raised ValueError: bad day; fix it"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3; fix it"),
        ("x = 1", "must define an entry in one of TASKS, CELLS, ENCODERS"),
        ("CELLS = [1]", "CELLS must be a dict of names and classes"),
        ("CELLS = {'mine': int}", "CELLS['mine'] must be a subclass of bilstm_attn.nn.cells.Cell"),
        (
            "from bilstm_attn.nn.cells import LSTM\nclass A(LSTM): pass\nCELLS = {'gru': A}",
            "defines 'gru' in CELLS, which exists already; choose another name",
        ),
    ],
)
def test_a_bad_plugin_is_one_line_and_registers_nothing(tmp_path, unload, source, says):
    (tmp_path / "bad.py").write_text(source)
    before = dict(cells.CELLS)
    assert says in error_of(plugins.load_plugins, [str(tmp_path / "bad.py")])
    assert before == cells.CELLS
    assert plugins.loaded() == []


def test_a_missing_plugin_is_one_line(unload):
    assert "no.py is not a file" in error_of(plugins.load_plugins, ["no.py"])
    assert error_of(plugins.load_plugins, ["no_such_module"]).startswith(
        "no plug-in 'no_such_module': give the path of a Python file, a module"
    )


def test_a_plugin_may_be_a_module_and_loads_once(peephole, unload, monkeypatch):
    monkeypatch.syspath_prepend(str(peephole.parent))
    plugins.load_plugins(["peephole"])
    plugins.load_plugins(["peephole", str(peephole)])
    assert len(plugins.loaded()) == 1
    assert "peephole" in cells.CELLS


@pytest.mark.slow
def test_a_plugin_cell_passes_the_contract_tests(peephole):
    plugins.load_plugins([str(peephole)])
    testing.check_cell(cells.CELLS["peephole"])


def test_git_revision_is_null_in_somebody_elses_repository(tmp_path):
    package = tmp_path / "venv" / "bilstm_attn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "theirs"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    assert git_revision(package) is None


def test_plugins_run_only_when_named():
    code = "import sys, bilstm_attn.runtime.plugins as p; print(p.loaded(), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
