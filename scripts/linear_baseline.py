"""Measures the linear baseline: `python scripts/linear_baseline.py [--cache DIR]`."""

from bilstm_attn.command_line.linear_baseline_cli import main
from bilstm_attn.runtime.cli import run_script

if __name__ == "__main__":
    run_script(main)
