"""Attributes predictions to words: `python scripts/explain.py RUN [TEXT | --limit 50]`."""

from bilstm_attn.command_line.explain_cli import main
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import configure_process

if __name__ == "__main__":
    configure_process()
    run_script(main)
