"""Times ours beside other implementations: `python scripts/benchmark.py [--quick]`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import arg

from bilstm_attn.config import DataConfig, require
from bilstm_attn.data.cache import DataPlaces, prepare_tokens
from bilstm_attn.terminal import Show, parse, run_script


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    dataset: str = "movie_reviews"
    """Whose training reviews make the batch: imdb or movie_reviews."""
    peers: tuple[str, ...] = ()
    """Implementations to time, by a part of their names; none given: all."""
    batch_size: int = 256
    """Reviews in the batch, padded to 500 tokens."""
    rounds: int = 7
    """Timed calls of each, interleaved."""
    quick: bool = False
    """Three rounds instead."""
    out: Path | None = None
    """Where to write every measurement, as JSON."""
    places: Annotated[DataPlaces, arg(name="")] = dataclasses.field(default_factory=DataPlaces)


def main(arguments: list[str]) -> int:
    """Measures; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program="scripts/benchmark.py",
        description="Times a training step and inference on one batch of real reviews: ours and "
        "others', each in a process of its own, interleaved, with the same memory settings, and "
        "each one's largest error against a float64 loop beside its time.",
    )
    require(parsed.rounds > 0, f"--rounds must be above 0, got {parsed.rounds}")
    require(parsed.batch_size > 0, f"--batch-size must be above 0, got {parsed.batch_size}")
    from bilstm_attn.benchmark import compare  # after parsing: jax takes seconds to import
    from bilstm_attn.benchmark.peers import PEERS
    from bilstm_attn.data.batches import count_vocabulary, plan_epoch, read_batch, select_examples

    wanted = parsed.peers or ("",)
    names = [name for name in PEERS if any(part in name for part in wanted)]
    require(bool(names), f"--peers must be parts of {', '.join(PEERS)}; got {parsed.peers}")
    show = Show()
    tokens = prepare_tokens(parsed.dataset, parsed.places, show)
    split, data = tokens.split("train"), DataConfig(batch_size=parsed.batch_size, bucket_edges=())
    rows = np.arange(len(split.labels))
    vocabulary = count_vocabulary(split, rows, tokens.lexicon(), data.vocabulary_size)
    examples = select_examples(split, rows, vocabulary, tokens.lexicon(), data.max_tokens)
    (batch,) = read_batch(examples, plan_epoch(examples.lengths, data, 0, 0)[0], data)
    records = compare.compare(names, batch, 3 if parsed.quick else parsed.rounds, show)
    if parsed.out:
        parsed.out.write_text(json.dumps(records))
    show.say(
        f"{len(batch.length)} reviews padded to {data.max_tokens}, {int(batch.length.sum()):,} "
        "tokens of their own"
    )
    show.say(compare.table(records))
    return 0


if __name__ == "__main__":
    run_script(main)
