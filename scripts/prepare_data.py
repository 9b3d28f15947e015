"""Tokenises a data set once: `python scripts/prepare_data.py [--archive aclImdb_v1.tar.gz]`."""

from bilstm_attn.command_line.prepare_data_cli import main
from bilstm_attn.runtime.cli import run_script

if __name__ == "__main__":
    run_script(main)
