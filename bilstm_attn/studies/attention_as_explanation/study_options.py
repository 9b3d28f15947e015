"""The options of the study: one dataclass for the command line and the command."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from bilstm_attn.config import BackendChoice, require, require_seed
from bilstm_attn.data.token_cache import DataLocations


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Which runs are studied, on how much data, and which auxiliary models are trained."""

    run: tuple[Path, ...]
    """Folders of finished runs with distinct names. Other seeds of a run are compared
    automatically."""
    out: Path | None = None
    """Folder of the report; None is RUN/attention of the first run."""
    limit: int = 4356
    """Number of test examples to study."""
    attribution_examples: int = 512
    """Number of these on which every attribution's faithfulness is measured."""
    seed: int = 0
    """Seed of the selection of examples."""
    strengths: tuple[float, ...] = (0.0, 1e-3, 3e-3, 1e-2, 1e-1)
    """Strengths of the trained adversaries: the weight of a different attention against an
    unchanged prediction."""
    epochs: int | None = None
    """Training epochs of the auxiliary models; None is the run's own number, 0 trains none."""
    adversary_epochs: int | None = None
    """Training epochs of the adversaries; None is --epochs. The authors trained up to 80."""
    adversary_start: Literal["base", "random"] = "base"
    """Whether adversaries start from the run's parameters, except the attention's, or at random
    as in the paper."""
    devices: int | None = None
    """Number of devices that share each batch; None is every accelerator, or up to 8 CPU cores."""
    backend: BackendChoice = "auto"
    """How the recurrence is computed, as in scripts/train.py."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)

    def check(self) -> None:
        """Checks every number.

        Raises:
          UserError: an option is out of range; names it and the range.
        """
        few, epochs = self.attribution_examples, self.epochs
        require(bool(self.run), "give at least one run's folder")
        require(self.limit > 0, f"--limit must be above 0, got {self.limit}")
        require_seed(self.seed)
        require(few > 0, f"--attribution-examples must be above 0, got {few}")
        require(epochs is None or epochs >= 0, f"--epochs must be at least 0, got {epochs}")
        require(
            self.adversary_epochs is None or self.adversary_epochs > 0,
            f"--adversary-epochs must be above 0, got {self.adversary_epochs}",
        )
        for strength in self.strengths:
            finite = 0 <= strength < math.inf
            require(finite, f"--strengths must be finite and at least 0, got {strength}")
