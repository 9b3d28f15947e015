"""Trains a recipe: `python scripts/train.py RECIPE [--seed N] [--model.hidden-size 128 ...]`.

Or repeats the first steps of a run: `python scripts/train.py --verify RUN`.
"""

from bilstm_attn.command_line.train_cli import main
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import configure_process

if __name__ == "__main__":
    configure_process()
    run_script(main)
