"""The installed program: its commands, its errors, and what a wheel contains."""

import subprocess
import sys
import tomllib

import pytest
from tiny_run import ROOT, error_of, tiny_run

from bilstm_attn.command_line.program import COMMANDS, main
from bilstm_attn.config_files import recipe_names
from bilstm_attn.runtime.files import recipes_folder


def test_there_is_a_command_for_every_script():
    scripts = {path.stem.replace("_", "-") for path in (ROOT / "scripts").glob("*.py")}
    assert set(COMMANDS) == scripts


def test_unknown_command_lists_the_choices():
    message = error_of(main, ["trian"])
    assert message.startswith("unknown command 'trian'; choose benchmark, evaluate, explain,")
    assert message.endswith("(did you mean 'train'?)")
    assert "needs a command; choose benchmark, evaluate" in error_of(main, [])


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_a_command_names_it(name):
    code = f"from bilstm_attn.command_line.program import main; main([{name!r}, '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: bilstm-attn {name}" in done.stdout


def test_report_command_prints_the_table_of_a_run(trained, capsys):
    assert main(["report", str(tiny_run(trained).folder)]) == 0
    assert "tiny" in capsys.readouterr().out


def test_a_checkout_reads_its_recipes_from_configs():
    assert recipes_folder() == ROOT / "configs"
    assert "quickstart" in recipe_names(recipes_folder())


def test_the_wheel_has_every_package_and_the_recipes():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "bilstm_attn").rglob("*.py")}
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert set(setuptools["packages"]) == names | {"bilstm_attn.recipes"}
    assert setuptools["package-dir"] == {"bilstm_attn.recipes": "configs"}
