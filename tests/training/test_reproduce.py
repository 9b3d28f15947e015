"""A recorded run, repeated: the same bits, rounding, or neither."""

import json

import pytest
from tiny_run import error_of, load_script, tiny_run

pytestmark = pytest.mark.slow


def verify(trained_copy) -> int:
    return load_script("train")(
        "--verify", tiny_run(trained_copy).folder, "--cache", trained_copy / "cache"
    )


def change_environment(run, **fields) -> None:
    environments = run.environments()
    run.write_environments([environments[0] | fields, *environments[1:]])


def change_proof(run, **fields) -> None:
    lines = [r | fields if r["kind"] == "proof" else r for r in run.records()]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_run_comes_out_again_bit_for_bit_and_is_left_as_it_is(trained_copy, capsys):
    before = {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}
    assert verify(trained_copy) == 0
    out = capsys.readouterr().out
    assert "the same bits after 6 steps: parameters, optimiser and loss\n" in out
    assert "differs" not in out
    assert before == {path: path.read_bytes() for path in trained_copy.rglob("*") if path.is_file()}


def test_on_other_devices_it_comes_out_to_rounding_and_differences_are_named(trained_copy, capsys):
    run = tiny_run(trained_copy)
    versions = run.environments()[0]["versions"] | {"jax": "0.0.1"}
    change_environment(run, devices=["cpu"], versions=versions)
    assert verify(trained_copy) == 0
    out = capsys.readouterr().out
    assert "differs  version of jax: 0.0.1 there, " in out
    assert "the same to rounding after 6 steps, not the same bits: loss " in out


def test_other_loss_is_not_the_same(trained_copy, capsys):
    change_proof(tiny_run(trained_copy), state_sha256="0", loss=12.5)
    assert verify(trained_copy) == 1
    assert "not the same after 6 steps: loss " in capsys.readouterr().out


def test_recorded_devices_and_backend_that_are_not_here_are_named(trained_copy, capsys):
    change_environment(tiny_run(trained_copy), devices=["H100"] * 64, backend="pallas", processes=8)
    assert verify(trained_copy) == 0
    out = capsys.readouterr().out
    for name in ("devices: ['H100', ", "backend: pallas there, native here", "processes: 8 there"):
        assert f"differs  {name}" in out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: run.metrics_file.unlink(), "has no proof to compare with"),
        (lambda run: run.config_file.unlink(), "is not a run's folder"),
        (lambda run: change_environment(run, data_sha256="0"), "was trained on other data"),
        (lambda run: run.environment_file.write_text("{"), "environment.json is damaged"),
        (lambda run: run.environment_file.unlink(), "has no record of the versions, devices"),
    ],
)
def test_run_that_cannot_be_verified_is_one_line(trained_copy, damage, says):
    damage(tiny_run(trained_copy))
    assert says in error_of(verify, trained_copy)
