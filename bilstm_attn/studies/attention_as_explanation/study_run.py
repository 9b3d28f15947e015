"""A run that is examined: its model, the reviews it is asked about, and how others are judged."""

import dataclasses
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bilstm_attn.config import Config
from bilstm_attn.data.splits import Examples
from bilstm_attn.data.token_cache import TokenCache
from bilstm_attn.inference.evaluate import require_finite
from bilstm_attn.inference.exported import Exported
from bilstm_attn.nn.metrics import accuracy, sigmoid
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.files import file_sha256
from bilstm_attn.studies.attention_as_explanation.jain_wallace import jensen_shannon
from bilstm_attn.studies.attention_as_explanation.measurements import Examiner, logits_and_attention
from bilstm_attn.studies.attention_as_explanation.result_cache import Kept
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.types import Params


def digest_of_model(run: RunDir) -> str:
    """Returns what tells a run's exported model from others."""
    return file_sha256(run.model)[:12]


def take(examples: Examples, chosen: np.ndarray) -> Examples:
    """Returns some of the examples."""
    each = {name: getattr(examples, name)[chosen] for name in Examples._fields if name != "ids"}
    return examples._replace(**each)


@dataclasses.dataclass
class Subject:
    """A run that is examined, on some test reviews."""

    run: RunDir
    exported: Exported
    tokens: TokenCache
    model: Model
    examples: Examples
    mesh: Mesh
    console: Console
    kept: Kept

    @property
    def config(self) -> Config:
        """The run's."""
        return self.exported.config

    def asking(
        self,
        model: Model | None = None,
        params: Params | None = None,
        examples: Examples | None = None,
    ) -> Examiner:
        """Returns who asks a model about some reviews: the run's own, about its own."""
        return Examiner(
            model or self.model,
            self.exported.params if params is None else params,
            examples or self.examples,
            self.config.data,
            self.mesh,
            self.console,
        )

    def judge(self, name: str, logits: np.ndarray, attention: np.ndarray | None) -> list[Any]:
        """Returns the fields of a `findings.Trained`, of what a model says of these reviews.

        Raises:
          UserError: the model's answers are not finite.
        """
        require_finite(logits, f"these reviews ({name})")
        own, weights = self._said
        change = float(np.abs(sigmoid(logits) - sigmoid(own)).mean())
        right, apart = accuracy(logits, self.examples.labels), None
        if attention is not None:
            apart = jensen_shannon(jnp.asarray(attention), jnp.asarray(weights), 1).tolist()
        return [name, right, change, apart]

    @cached_property
    def _said(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and attention of the run's own model."""
        return self.asking().ask("its answers", logits_and_attention)
