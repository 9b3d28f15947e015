"""A run's folder: what it refuses, and what it keeps."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2
from tiny_run import error_of, full_disk

from bilstm_attn.config import Config, ModelConfig, OptimConfig
from bilstm_attn.training.environment import describe_environment, git_revision
from bilstm_attn.training.run_dir import RunDir

CONFIG = Config(name="tiny", model=ModelConfig(hidden_size=3))
LINES = [{"kind": "train", "step": step, "loss": 1 / step} for step in (2, 4, 6)]

FINAL = {"kind": "final", "step": 4, "split": "test", "accuracy": 0.5}


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run that has logged three lines."""
    run = RunDir(tmp_path / "tiny" / "seed0")
    run.start(CONFIG, {"command": ["first"]})
    for line in LINES:
        run.log(line)
    return run


# The folder


def test_started_run_knows_its_config(run):
    assert run.config() == CONFIG


def test_starting_again_adds_an_environment(run):
    run.start(CONFIG, {"command": ["second"]})
    starts = json.loads((run.folder / "environment.json").read_text())["starts"]
    assert [environment["command"] for environment in starts] == [["first"], ["second"]]


def test_folder_that_is_no_run_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        message = error_of(RunDir(folder).config)
        assert message.startswith(f"{folder} is not a run's folder")
        assert error_of(RunDir(folder).exported) == message


def test_run_without_a_finished_epoch_has_no_model(run):
    says = "no epoch has ended; continue the run with --resume"
    assert error_of(run.exported).endswith(says)


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b'{"laters": 1}'])
def test_config_of_another_version_or_damaged_is_one_line(run, data):
    run.config_file.write_bytes(data)
    assert str(run.config_file) in error_of(run.config)


@pytest.mark.parametrize("change", [("{", "["), ("first", "fisst"), ('"starts', '"stars')])
def test_damaged_environment_is_one_line(run, change):
    file = run.folder / "environment.json"
    file.write_text(file.read_text().replace(*change))
    assert "environment.json is damaged" in error_of(run.start, CONFIG, {})


def test_run_that_exists_wants_resume(run):
    says = "holds this run already; continue it with --resume, or give --name or --seed"
    assert says in error_of(run.check, CONFIG, resume=False)
    run.check(CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_run_of_another_config_names_the_fields_that_differ(run, resume):
    other = dataclasses.replace(
        CONFIG,
        model=ModelConfig(hidden_size=4, cell_options={"forget_bias": 2.0}),
        optim=OptimConfig(clip_norm=1.0),
    )
    message = error_of(run.check, other, resume=resume)
    assert "model.hidden_size 3 there, 4 here" in message
    assert "model.cell_options {} there, {'forget_bias': 2.0} here" in message
    assert "optim.clip_norm None there, 1.0 here" in message
    assert message.endswith("give this one another --name")


def test_nothing_to_resume_is_an_error(tmp_path):
    says = f"{tmp_path / 'a'} holds no run to resume; leave out --resume"
    assert error_of(RunDir(tmp_path / "a").check, CONFIG, resume=True) == says
    RunDir(tmp_path / "a").check(CONFIG, resume=False)


# Metrics


def test_records_are_what_was_logged(run):
    assert run.records() == LINES


def test_run_that_logged_nothing_has_no_records(tmp_path):
    assert RunDir(tmp_path).records() == []


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_line_cut_off_by_a_kill_is_left_out(run, kept):
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    run.metrics_file.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    assert run.records() == LINES[:-1]
    run.rewind(4, LINES[:-1])
    run.log(LINES[-1])
    assert run.records() == LINES


@pytest.mark.parametrize("data", [b"{\n", b"\x00\x00\n", b"\xff\n", b"5\n"])
def test_damaged_line_of_the_metrics_is_named(run, data):
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    run.metrics_file.write_bytes(lines[0] + data + lines[2])
    message = error_of(run.records)
    assert message.startswith(f"line 2 of {run.metrics_file} is damaged (")
    assert message.endswith("delete that line")


def test_rewind_drops_later_lines_alone(run):
    run.rewind(4, LINES[:2])
    assert run.records() == run.logged == LINES[:2]


@pytest.mark.parametrize(
    "data", [None, b"", b"{\n", b'{"kind": "train", "step": 2, "loss": 0.6}\n']
)
def test_rewind_brings_back_lines_that_were_lost_or_changed(run, data):
    if data is None:
        run.metrics_file.unlink()
    else:
        run.metrics_file.write_bytes(data)
    run.rewind(6, LINES)
    assert run.records() == LINES


def test_what_was_measured_at_the_end_stays_if_no_step_is_run_again(run):
    run.log(FINAL)
    run.rewind(6, LINES)
    assert run.records() == run.logged == [*LINES, FINAL]
    run.rewind(4, LINES[:2])
    assert run.records() == LINES[:2]


def test_full_disk_keeps_the_lines_before(run):
    before = run.metrics_file.read_bytes()
    with full_disk(len(before) + 5):
        message = error_of(run.log, LINES[0])
    assert message.startswith(f"cannot save {run.metrics_file}: File too large")
    assert run.metrics_file.read_bytes().startswith(before)
    assert run.records() == LINES


def test_no_space_left_on_the_device_is_one_line(run):
    run.metrics_file.unlink()
    run.metrics_file.symlink_to("/dev/full")
    message = error_of(run.log, LINES[0])
    assert message.startswith(f"cannot save {run.metrics_file}: No space left on device")
    assert "free some space" in message


def test_tensorboard_shows_each_number_once_even_where_steps_were_run_again(run):
    reading = {"kind": "train", "step": 6, "loss": 0.5, "epoch": 1}
    for step, kept, more in ((0, [], LINES), (4, LINES[:2], [reading])):
        resumed = RunDir(run.folder)
        resumed.open_tensorboard()
        resumed.rewind(step, kept)
        for line in more:
            resumed.log(line)
        resumed.close()
    purged_from, seen = 0, {}
    for path in sorted(run.tensorboard.iterdir(), key=lambda path: path.suffix):
        for event in events(path.read_bytes()):
            if event.session_log.status:  # what TensorBoard shows from this step on is dropped
                purged_from = event.step
                seen = {step: values for step, values in seen.items() if step < purged_from}
            for value in event.summary.value:
                seen.setdefault(event.step, []).append((value.tag, value.simple_value))
    assert purged_from == 5
    assert seen == {
        2: [("train/loss", 0.5)],
        4: [("train/loss", 0.25)],
        6: [("train/loss", 0.5)],
    }


def test_full_disk_under_tensorboard_is_one_line(run):
    run.open_tensorboard()
    run.rewind(6, LINES)
    metrics = run.metrics_file.stat().st_size
    while (size := next(run.tensorboard.iterdir()).stat().st_size) < 2 * metrics:
        run._write_event(step=6)
    with full_disk(size):
        message = error_of(run.log, LINES[0] | {"step": 8})
    assert message.startswith(f"cannot save {run.tensorboard}: File too large")
    run.close()


def events(data: bytes):
    """Yields TensorBoard's events: each is a length, a checksum, itself, a checksum."""
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_tensorboard_without_its_package_names_the_extra(run, monkeypatch):
    for module in ("tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, module, None)
    assert error_of(run.open_tensorboard).endswith("pip install -e '.[tensorboard]'")


# The environment


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_git_revision_tells_of_changes(tmp_path):
    git(tmp_path, "init")
    package = tmp_path / "bilstm_attn"
    package.mkdir()
    (package / "file").write_text("1")
    (tmp_path / "pyproject.toml").write_text('name = "bilstm-attn"')
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    clean = git_revision(package)
    assert len(clean) == 40
    (package / "file").write_text("2")
    assert git_revision(package) == f"{clean}+changes"


def test_without_a_checkout_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(tmp_path) is None


def test_environment_says_what_a_result_depends_on():
    class Device:
        device_kind, process_index = "abacus", 0

    environment = describe_environment([Device(), Device()], "d1f")
    assert environment["devices"] == ["abacus", "abacus"]
    assert environment["data_sha256"] == "d1f"
    assert {"jax", "jaxlib", "flax", "optax", "numpy"} <= set(environment["versions"])
    json.dumps(environment)


def test_second_process_in_a_live_runs_folder_is_refused(tmp_path):
    run = RunDir(tmp_path / "tiny" / "seed0")
    says = (
        f"another process is training in {run.folder}; wait for it, or give --name or --seed for "
        "another run"
    )
    with run.held():
        assert error_of(RunDir(run.folder).held().__enter__) == says
    with RunDir(run.folder).held():
        pass
    (tmp_path / "file").touch()
    assert "cannot save" in error_of(RunDir(tmp_path / "file" / "seed0").held().__enter__)
