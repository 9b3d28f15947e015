"""Tests whether attention is an explanation: `python scripts/study_attention.py RUN [RUN ...]`."""

from bilstm_attn.command_line.study_attention_cli import main
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import configure_process

if __name__ == "__main__":
    configure_process()
    run_script(main)
