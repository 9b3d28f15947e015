"""Times this package and other implementations: `python scripts/benchmark.py [--quick]`."""

from bilstm_attn.command_line.benchmark_cli import main
from bilstm_attn.runtime.cli import run_script
from bilstm_attn.runtime.xla_flags import use_cuda_graphs

if __name__ == "__main__":
    use_cuda_graphs()
    run_script(main)
