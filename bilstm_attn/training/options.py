"""The options of the commands train, evaluate and verify: one dataclass each."""

import dataclasses
from pathlib import Path

from bilstm_attn.config import BackendChoice, Config, require
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.xla_flags import Processes


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where and how a config is trained; changes no number beyond rounding."""

    runs: Path = Path("runs")
    """Folder of the runs; each has a folder NAME/seedN below it."""
    resume: bool = False
    """Continue this run from its newest checkpoint."""
    seeds: int = 1
    """Number of seeds to train, from --seed on; each has a folder of its own."""
    vmap_seeds: bool = False
    """Train the seeds in one vmapped program, as an accelerator does by itself. On a CPU it is
    slower, and without it the seeds take turns with one compilation."""
    devices: int | None = None
    """Devices of each process that share a batch; None is every accelerator, or up to 8 CPU
    cores."""
    backend: BackendChoice = "auto"
    """How the recurrence is computed: native (C++, CPU), pallas (GPU or TPU, unproven), scan or
    plain; auto is native where it can be built, else scan. The last digits differ."""
    deterministic: bool = False
    """Exclude GPU operations whose bits change from run to run; a CPU has none."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run folder."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)
    processes: Processes = dataclasses.field(default_factory=Processes)

    def check(self, config: Config) -> None:
        """Checks every number.

        Raises:
          UserError: an option is out of range; names it and the range.
        """
        require(
            self.log_every_steps > 0,
            f"--log-every-steps must be above 0, got {self.log_every_steps}",
        )
        require(
            0 < self.seeds <= 2**32 - config.seed,
            "--seeds must be above 0, and the last seed below 2**32, "
            f"got {self.seeds} from {config.seed}",
        )


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Which run is measured on which split."""

    run: Path
    """A run folder, runs/NAME/seedN."""
    split: str | None = None
    """test, validation (the examples that this run held out) or train (all of its split); None is
    test, or validation where the data set has no test split."""
    devices: int | None = None
    """Devices that share a batch; None is every accelerator, or up to 8 CPU cores."""
    backend: BackendChoice = "auto"
    """How the recurrence is computed, as in training."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Which run's first steps are repeated."""

    verify: Path
    """A run folder."""
    deterministic: bool = False
    """Exclude GPU operations whose bits change from run to run, as in training."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)
