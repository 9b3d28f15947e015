"""The options of the benchmark: one dataclass for the command line and the command."""

import dataclasses
from pathlib import Path
from typing import Literal

from bilstm_attn.config import MatmulPrecision, require
from bilstm_attn.data.token_cache import DataLocations

QUICK_PEERS = ("ours, native", "ours, scan", "flax", "torch padded")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Which implementations are timed, on which batches, at which sizes, and how often."""

    dataset: str = "movie_reviews"
    """Data set whose training texts make the batches: imdb or movie_reviews."""
    peers: tuple[str, ...] = ()
    """Implementations to time, each by a part of its name; none given: all."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device on which all implementations run."""
    hidden_size: tuple[int, ...] = (64,)
    """Hidden units per direction; one table per value."""
    matmul_precision: tuple[MatmulPrecision, ...] = ("float32",)
    """Matmul precision; one table per value. bfloat16 exists only in ours and in torch,
    tensorfloat32 only on a GPU."""
    batch_size: int = 256
    """Texts per batch, padded to 500 tokens."""
    lengths: Literal["all", "full"] = "all"
    """Draw from texts of all lengths, or only from those of at least 500 tokens."""
    rounds: int = 7
    """Timed calls per implementation, interleaved."""
    epoch_steps: int = 7
    """Timed steps of an epoch, from which its whole time is extrapolated; 0 leaves it out."""
    quick: bool = False
    """Two rounds of 128 texts, no epoch, no second start, and by default four implementations:
    about two minutes."""
    grow: bool = False
    """Instead, time training steps at several lengths, batch sizes, widths and numbers of
    devices."""
    out: Path | None = None
    """JSON file for every measurement; by default none is written."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)

    @property
    def on_gpu(self) -> bool:
        """Whether all implementations run on a GPU."""
        return self.device == "gpu"

    @property
    def starts(self) -> int:
        """Number of timed starts per implementation; the second one finds a warm cache."""
        return 1 if self.quick else 2

    def check(self) -> None:
        """Checks every number.

        Raises:
          UserError: an option is out of range; names it and the range.
        """
        require(self.rounds > 0, f"--rounds must be above 0, got {self.rounds}")
        require(self.batch_size > 0, f"--batch-size must be above 0, got {self.batch_size}")
        for size in self.hidden_size:
            require(size > 0, f"--hidden-size must be above 0, got {size}")
        require(self.epoch_steps >= 0, f"--epoch-steps must be at least 0, got {self.epoch_steps}")

    def with_quick_sizes(self) -> "BenchmarkOptions":
        """Returns the options with the sizes that `--quick` stands for, if it is given."""
        if not self.quick:
            return self
        peers = self.peers or QUICK_PEERS
        return dataclasses.replace(self, peers=peers, rounds=2, batch_size=128, epoch_steps=0)
