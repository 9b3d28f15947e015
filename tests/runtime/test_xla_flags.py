"""XLA flags that the commands set before JAX is used."""

import os

import pytest

from bilstm_attn.runtime import xla_flags


@pytest.mark.parametrize(
    ("flags", "plugin", "expected"),
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
def test_cuda_graphs_are_enabled_with_a_cuda_plugin_unless_the_user_set_the_flag(
    monkeypatch, flags, plugin, expected
):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda name: name == plugin or None)
    xla_flags.use_cuda_graphs()
    assert os.environ["XLA_FLAGS"] == expected


def test_deterministic_gpu_ops_are_added_to_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    xla_flags.request_deterministic_gpu_ops()
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_deterministic_ops=true"
