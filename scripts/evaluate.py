"""Measures a run on a split: `python scripts/evaluate.py RUN [--split test]`."""

from bilstm_attn.command_line.evaluate_cli import main
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import configure_process

if __name__ == "__main__":
    configure_process()
    run_script(main)
