"""Makes a table of runs: `python scripts/report.py runs/tutorial [runs/best ...]`."""

from bilstm_attn.command_line.report_cli import main
from bilstm_attn.runtime.cli import run_script

if __name__ == "__main__":
    run_script(main)
