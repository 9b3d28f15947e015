"""Times our implementation and others: `python scripts/benchmark.py [--quick]`."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import arg

from bilstm_attn.config import DataConfig, MatmulPrecision, ModelConfig, require
from bilstm_attn.data.token_cache import DataLocations, prepare_tokens
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.plugins import load_plugins

QUICK = ("ours, native", "ours, scan", "flax", "torch padded")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    dataset: str = "movie_reviews"
    """Whose training reviews make the batches: imdb or movie_reviews."""
    peers: tuple[str, ...] = ()
    """Implementations to time, by a part of their names; none given: all."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where all of them run."""
    hidden_size: tuple[int, ...] = (64,)
    """Hidden units of one direction; several make a table each."""
    matmul_precision: tuple[MatmulPrecision, ...] = ("float32",)
    """What products are computed in: bfloat16 by ours and torch's alone, tensorfloat32 on a GPU;
    several make a table each."""
    batch_size: int = 256
    """Reviews in the batch, padded to 500 tokens."""
    lengths: Literal["all", "full"] = "all"
    """Take reviews of all lengths, or those of 500 tokens or more alone."""
    rounds: int = 7
    """Timed calls of each, interleaved."""
    epoch_steps: int = 7
    """Steps of a real epoch that are timed, to say how long all of it takes; 0 leaves it out."""
    quick: bool = False
    """Two rounds of 128 reviews, no epoch, no second start, and without peers named some of them
    alone: about two minutes."""
    grow: bool = False
    """Time training steps at other lengths, batches, sizes and numbers of devices instead."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    out: Path | None = None
    """Where to write every measurement, as JSON."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/benchmark.py") -> int:
    """Measures; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Times training and inference on real reviews: ours and others', each in a "
        "process of its own, interleaved, with the same memory settings, and each one's largest "
        "error against a float64 loop.",
    )
    load_plugins(parsed.plugin)
    require(parsed.rounds > 0, f"--rounds must be above 0, got {parsed.rounds}")
    require(parsed.batch_size > 0, f"--batch-size must be above 0, got {parsed.batch_size}")
    for size in parsed.hidden_size:
        require(size > 0, f"--hidden-size must be above 0, got {size}")
    require(parsed.epoch_steps >= 0, f"--epoch-steps must be at least 0, got {parsed.epoch_steps}")
    from bilstm_attn.benchmark import compare
    from bilstm_attn.benchmark.peers import PEERS
    from bilstm_attn.benchmark.worker import Work
    from bilstm_attn.data.batches import BatchPlan, plan_epoch, read_batch
    from bilstm_attn.data.splits import count_vocabulary, select_examples

    if parsed.quick:
        parsed = dataclasses.replace(
            parsed, peers=parsed.peers or QUICK, rounds=2, batch_size=128, epoch_steps=0
        )
    wanted = parsed.peers or ("",)
    names = [name for name in PEERS if any(part in name for part in wanted)]
    require(bool(names), f"--peers must be parts of {', '.join(PEERS)}; got {parsed.peers}")
    console = Console()
    tokens = prepare_tokens(DataConfig(dataset=parsed.dataset), parsed.locations, console)
    split, rows = tokens.split("train"), np.arange(len(tokens.split("train").labels))
    vocabulary = count_vocabulary(split, rows, tokens.lexicon(), DataConfig().vocabulary_size)

    def rows_for(steps: int) -> np.ndarray:
        return rows if parsed.lengths == "all" else rows[split.counts + 1 >= steps]

    def make_work(reviews: int, steps: int, epoch_steps: int = 0) -> Work:
        chosen = rows_for(steps)
        require(
            reviews <= len(chosen),
            f"{parsed.dataset} has {len(chosen)} reviews for batches of {reviews}; give another "
            "--dataset or a smaller --batch-size",
        )
        examples = select_examples(split, chosen, vocabulary, tokens.lexicon(), steps)
        flat = DataConfig(batch_size=reviews, max_tokens=steps, bucket_edges=())
        (batch,) = read_batch(examples, plan_epoch(examples.lengths, flat, 0, 0)[0], flat)
        median = np.argsort(examples.lengths, kind="stable")[len(chosen) // 2]
        length = int(examples.lengths[median])
        single = DataConfig(batch_size=1, max_tokens=length, bucket_edges=())
        (one,) = read_batch(examples, BatchPlan(np.array([median]), (length,)), single)
        if epoch_steps == 0:
            return Work(batch, one, [])
        grouped = dataclasses.replace(DataConfig(), batch_size=reviews, max_tokens=steps)
        plans = plan_epoch(examples.lengths, grouped, 0, 0)[:epoch_steps]
        return Work(batch, one, [read_batch(examples, plan, grouped) for plan in plans])

    if parsed.grow:
        on_gpu = parsed.device == "gpu"
        records = compare.grow(names, make_work, console, rounds=2, on_gpu=on_gpu)
        console.print(compare.growth_table(records))
    else:
        work = make_work(parsed.batch_size, DataConfig().max_tokens, parsed.epoch_steps)
        reviews = len(rows_for(DataConfig().max_tokens))
        console.print(
            f"{len(work.batch.length)} reviews padded to {work.batch.tokens.shape[1]}, "
            f"{int(work.batch.length.sum()):,} tokens of their own; one review of "
            f"{int(work.one.length[0])}; an epoch of {reviews:,} reviews, by {len(work.epoch)} "
            "steps of it"
        )
        steps_an_epoch = -(-reviews // parsed.batch_size)
        records = []
        for size, matmul_precision in itertools.product(
            parsed.hidden_size, parsed.matmul_precision
        ):
            config = ModelConfig(hidden_size=size, matmul_precision=matmul_precision)
            measured = compare.compare(
                names,
                work,
                console,
                rounds=parsed.rounds,
                starts=1 if parsed.quick else 2,
                config=config,
                on_gpu=parsed.device == "gpu",
            )
            console.print(f"{size} hidden units, matmuls in {matmul_precision}")
            console.print(compare.table(measured, steps_an_epoch / max(len(work.epoch), 1)))
            console.print(compare.share_of_peak(measured, work, config))
            setting = {"hidden": size, "matmul_precision": matmul_precision}
            records += [{"setting": setting} | record for record in measured]
    if parsed.out:
        parsed.out.write_text(json.dumps(records))
    return 0
