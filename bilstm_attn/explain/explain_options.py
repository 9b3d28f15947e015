"""The options of the explain command: one dataclass for the command line and the command."""

import dataclasses
from pathlib import Path
from typing import Literal

from bilstm_attn.config import BackendChoice, require, require_seed
from bilstm_attn.data.token_cache import DataLocations

Format = Literal["html", "terminal", "png", "json"]
MAX_PNG_TEXTS = 10


@dataclasses.dataclass(frozen=True)
class ExplainOptions:
    """Which model explains which texts by which attributions, and how they are written."""

    run: Path
    """A run folder, or an exported model.safetensors."""
    text: str | None = None
    """A text to explain; without it, examples are drawn from a split."""
    split: str | None = None
    """Split to draw from: test, train, validation or unlabelled. None is test, or validation where
    the data set has no test split."""
    limit: int = 50
    """Number of examples to draw."""
    seed: int = 0
    """Seed of the draw."""
    attributions: tuple[str, ...] = ()
    """Names in explain.attribution.ATTRIBUTIONS; none given: attention, gradient_x_input,
    integrated_gradients, leave_one_out."""
    format: Format = "html"
    """A page, shaded lines, a picture, or JSON lines."""
    out: Path | None = None
    """Output file; by default in the run folder."""
    devices: int | None = None
    """Number of devices that share each batch; None is every accelerator, or up to 8 CPU cores."""
    backend: BackendChoice = "auto"
    """How the recurrence is computed, as in scripts/train.py."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)

    @property
    def examples(self) -> int:
        """The largest number of texts that may be explained."""
        return 1 if self.text is not None else self.limit

    def check(self) -> None:
        """Checks every option that needs no model.

        Raises:
          UserError: an option is out of range, or two do not go together.
        """
        require(self.limit > 0, f"--limit must be above 0, got {self.limit}")
        require_seed(self.seed)
        require(
            self.format != "terminal" or self.out is None,
            "--format terminal writes no file; leave out --out",
        )
        require(
            self.format != "png" or self.examples <= MAX_PNG_TEXTS,
            f"--format png draws at most {MAX_PNG_TEXTS} texts, got --limit {self.limit}; lower "
            "it, or give --format html",
        )
