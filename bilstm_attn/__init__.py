"""Bidirectional LSTMs with attention for text, in JAX and Flax.

`bilstm_attn.train`, `load` and `load_recipe` are in `bilstm_attn.api`; the configs, `Model`,
`Predictor`, `TrainOptions` and `UserError` can be imported from here too. All of these names are
imported on first use, so that `import bilstm_attn` is instant and leaves JAX unconfigured.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilstm_attn.api import TrainResult as TrainResult
    from bilstm_attn.api import load as load
    from bilstm_attn.api import load_recipe as load_recipe
    from bilstm_attn.api import train as train
    from bilstm_attn.config import Config as Config
    from bilstm_attn.config import DataConfig as DataConfig
    from bilstm_attn.config import ModelConfig as ModelConfig
    from bilstm_attn.config import OptimConfig as OptimConfig
    from bilstm_attn.config import TrainConfig as TrainConfig
    from bilstm_attn.errors import UserError as UserError
    from bilstm_attn.inference.exported import load_model as load_model
    from bilstm_attn.inference.predict import Prediction as Prediction
    from bilstm_attn.inference.predict import Predictor as Predictor
    from bilstm_attn.nn.model import Model as Model
    from bilstm_attn.training.loop import StopTraining as StopTraining
    from bilstm_attn.training.options import TrainOptions as TrainOptions

__version__ = "0.1.0"

_MODULE_OF = {
    "Config": "bilstm_attn.config",
    "DataConfig": "bilstm_attn.config",
    "Model": "bilstm_attn.nn.model",
    "ModelConfig": "bilstm_attn.config",
    "OptimConfig": "bilstm_attn.config",
    "Prediction": "bilstm_attn.inference.predict",
    "Predictor": "bilstm_attn.inference.predict",
    "StopTraining": "bilstm_attn.training.loop",
    "TrainConfig": "bilstm_attn.config",
    "TrainOptions": "bilstm_attn.training.options",
    "TrainResult": "bilstm_attn.api",
    "UserError": "bilstm_attn.errors",
    "load": "bilstm_attn.api",
    "load_model": "bilstm_attn.inference.exported",
    "load_recipe": "bilstm_attn.api",
    "train": "bilstm_attn.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
