"""Jain and Wallace's own protocol: every training review, and the last of eight epochs.

The model of `jain_wallace`, with nothing held out. Test is looked at after each epoch and nothing
is selected on it; the authors' code selects the epoch on test in some versions and takes the last
one in others. Their test part is a fifth of these reviews, as `scripts/examine.py` draws it.

Source: github.com/successar/AttentionExplanation.
Run:    python scripts/train.py jain_wallace_rerun
Result: status: unmeasured
"""

import dataclasses

from bilstm_attn.config import TrainConfig
from configs.jain_wallace import config as model

config = dataclasses.replace(
    model,
    data=dataclasses.replace(model.data, validation_reviews=0),
    train=TrainConfig(epochs=8, each_epoch="test", select="last"),
)
