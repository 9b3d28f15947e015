"""The run under study: its model, the examples it is evaluated on, and comparisons with it."""

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
from bilstm_attn.nn.model import Model
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.files import file_sha256
from bilstm_attn.studies.attention_as_explanation.jain_wallace import jensen_shannon
from bilstm_attn.studies.attention_as_explanation.measurements import (
    Evaluator,
    logits_and_attention,
)
from bilstm_attn.studies.attention_as_explanation.result_cache import ResultCache
from bilstm_attn.training.run_dir import RunDir
from bilstm_attn.types import Params


def model_digest(run_dir: RunDir) -> str:
    """Returns a short digest of the exported model."""
    return file_sha256(run_dir.model)[:12]


@dataclasses.dataclass
class StudyRun:
    """The run under study, and the test examples it is evaluated on."""

    run_dir: RunDir
    exported: Exported
    tokens: TokenCache
    model: Model
    examples: Examples
    mesh: Mesh
    console: Console
    cache: ResultCache

    @property
    def config(self) -> Config:
        """The run's config."""
        return self.exported.config

    def evaluator(
        self,
        model: Model | None = None,
        params: Params | None = None,
        examples: Examples | None = None,
    ) -> Evaluator:
        """Returns an evaluator for a model on some examples; by default this run's own."""
        return Evaluator(
            model or self.model,
            self.exported.params if params is None else params,
            examples or self.examples,
            self.config.data,
            self.mesh,
            self.console,
        )

    def compare(self, name: str, logits: np.ndarray, attention: np.ndarray | None) -> list[Any]:
        """Returns the fields of a `ModelComparison` with this run's own model, as plain JSON.

        Args:
          name: of the other model.
          logits: its logits `[n]` on the studied examples.
          attention: its attention weights `[n t]`, or None if it has none of its own.

        Raises:
          UserError: the logits are not finite.
        """
        require_finite(logits, f"these texts ({name})")
        base_logits, base_attention = self._base_outputs
        task = self.model.task
        probabilities, base = (task.probabilities(each)[:, -1] for each in (logits, base_logits))
        change = float(np.abs(probabilities - base).mean())
        accuracy = float((task.predicted(logits) == self.examples.labels).mean())
        divergences = None
        if attention is not None:
            arrays = jnp.asarray(attention), jnp.asarray(base_attention)
            divergences = jensen_shannon(*arrays, 1).tolist()
        return [name, accuracy, change, divergences]

    @cached_property
    def _base_outputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and attention of the run's own model on the studied examples."""
        return self.evaluator().evaluate("base model", logits_and_attention)
