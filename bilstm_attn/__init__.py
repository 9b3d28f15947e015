"""Bidirectional LSTMs with attention for text, in JAX and Flax.

The names below are imported on first use, so that `import bilstm_attn` is instant and leaves JAX
unconfigured.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilstm_attn.api import TrainResult, load, load_recipe, train
    from bilstm_attn.config import (
        Config,
        DataConfig,
        ModelConfig,
        OptimConfig,
        TrainConfig,
    )
    from bilstm_attn.errors import UserError
    from bilstm_attn.inference.exported import load_model
    from bilstm_attn.inference.predict import Prediction, Predictor
    from bilstm_attn.nn.model import Model
    from bilstm_attn.training.loop import StopTraining
    from bilstm_attn.training.options import TrainOptions

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DataConfig",
    "Model",
    "ModelConfig",
    "OptimConfig",
    "Prediction",
    "Predictor",
    "StopTraining",
    "TrainConfig",
    "TrainOptions",
    "TrainResult",
    "UserError",
    "load",
    "load_model",
    "load_recipe",
    "train",
]
_MODULES = {
    "bilstm_attn.api": ("TrainResult", "load", "load_recipe", "train"),
    "bilstm_attn.config": ("Config", "DataConfig", "ModelConfig", "OptimConfig", "TrainConfig"),
    "bilstm_attn.errors": ("UserError",),
    "bilstm_attn.inference.exported": ("load_model",),
    "bilstm_attn.inference.predict": ("Prediction", "Predictor"),
    "bilstm_attn.nn.model": ("Model",),
    "bilstm_attn.training.loop": ("StopTraining",),
    "bilstm_attn.training.options": ("TrainOptions",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
