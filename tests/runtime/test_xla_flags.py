"""What a script sets before jax is in use."""

import os

import pytest

from bilstm_attn.runtime import xla_flags as process


@pytest.mark.parametrize(
    ("flags", "plugin", "after"),
    [
        ("", "jax_cuda13_plugin", "--xla_gpu_enable_command_buffer=+WHILE"),
        ("--a=1", "jax_cuda12_plugin", "--a=1 --xla_gpu_enable_command_buffer=+WHILE"),
        ("--a=1", None, "--a=1"),
        (
            "--xla_gpu_enable_command_buffer=-WHILE",
            "jax_cuda12_plugin",
            "--xla_gpu_enable_command_buffer=-WHILE",
        ),
    ],
)
def test_loops_are_cuda_graphs_where_there_is_cuda_and_nobody_said_otherwise(
    monkeypatch, flags, plugin, after
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: name == plugin or None)
    process.use_cuda_graphs()
    assert os.environ["XLA_FLAGS"] == after


def test_same_bits_are_asked_for_beside_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    process.request_deterministic_gpu_ops()
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_deterministic_ops=true"
