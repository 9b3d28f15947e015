"""The benchmark command: from its options to printed tables and a file of measurements."""

import itertools
import json
from collections.abc import Sequence

from bilstm_attn.benchmark.benchmark_options import BenchmarkOptions
from bilstm_attn.benchmark.compare import compare, measure_growth
from bilstm_attn.benchmark.peers import PEERS
from bilstm_attn.benchmark.speed_tables import growth_table, share_of_peak, speed_table
from bilstm_attn.benchmark.worker_pool import Record
from bilstm_attn.benchmark.workload import TrainingTexts
from bilstm_attn.config import DataConfig, ModelConfig, require
from bilstm_attn.data.token_cache import prepare_tokens
from bilstm_attn.runtime.console import Console


def run_benchmark(options: BenchmarkOptions) -> int:
    """Times the implementations and prints the tables; returns the exit status.

    Raises:
      UserError: a mistake in the options or the data.
    """
    options.check()
    options = options.with_quick_sizes()
    names, console = select_peers(options.peers), Console()
    tokens = prepare_tokens(DataConfig(dataset=options.dataset), options.locations, console)
    texts = TrainingTexts(tokens, options)
    if options.grow:
        records = measure_growth(names, texts.make_workload, options, console)
        console.print(growth_table(records))
    else:
        records = measure_sizes(names, texts, options, console)
    if options.out:
        options.out.write_text(json.dumps(records))
    return 0


def select_peers(parts: Sequence[str]) -> list[str]:
    """Returns the names in `PEERS` that contain one of `parts`; all names if no part is given.

    Raises:
      UserError: no name contains any of the parts.
    """
    names = [name for name in PEERS if not parts or any(part in name for part in parts)]
    require(
        bool(names),
        f"--peers must be parts of {'; '.join(PEERS)}; got {', '.join(parts)}",
    )
    return names


def measure_sizes(
    names: Sequence[str], texts: TrainingTexts, options: BenchmarkOptions, console: Console
) -> list[Record]:
    """Prints one table per hidden size and matmul precision; returns all measurements."""
    steps = DataConfig().max_tokens
    workload = texts.make_workload(options.batch_size, steps, options.epoch_steps)
    examples = len(texts.rows(steps))
    console.print(
        f"batch: {len(workload.batch.length)} texts padded to {workload.batch.tokens.shape[1]} "
        f"tokens, {int(workload.batch.length.sum()):,} tokens without padding; one text: "
        f"{int(workload.single.length[0])} tokens; epoch: {examples:,} texts, extrapolated from "
        f"{len(workload.epoch)} steps"
    )
    steps_per_epoch = -(-examples // options.batch_size)
    records = []
    for hidden_size, precision in itertools.product(options.hidden_size, options.matmul_precision):
        config = ModelConfig(hidden_size=hidden_size, matmul_precision=precision)
        measured = compare(names, workload, config, options, console)
        console.print(f"{hidden_size} hidden units, matmuls in {precision}")
        console.print(speed_table(measured, steps_per_epoch / max(len(workload.epoch), 1)))
        console.print(share_of_peak(measured, workload, config))
        setting = {"hidden": hidden_size, "matmul_precision": precision}
        records += [{"setting": setting} | record for record in measured]
    return records
