"""A few training steps of the tiny data set against stored values.

The stored values are those of the code before the package was moved into layered folders. They are
compared to a relative 1e-4, since another machine or version of XLA sums float32 in another order.
A bias starts at 0, so its norm is only a sum of Adam's updates, which divide rounding errors by
gradients as small: between jax 0.10 and 0.12 the attention's differs by 1e-6; 1e-5 is allowed.

Update `golden_steps.jsonl` only in a commit that changes the numbers of a training on purpose, and
name the reason there. This prints the new lines of the file:

    PRINT_GOLDEN=1 python -m pytest -n 0 -s -m "slow or not slow" \\
        tests/training/test_golden_steps.py | grep '^{'
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import train

GOLDEN = Path(__file__).with_name("golden_steps.jsonl")
RECIPES = {
    "lstm_additive": {},
    "gru_additive_keys": {"model__cell": "gru", "model__attention": "additive_keys"},
    "word_dropout_cosine_clip": {
        "model__word_dropout": 0.5,
        "optim__schedule": "cosine",
        "optim__warmup_steps": 2,
        "optim__clip_norm": 0.1,
    },
}


def golden_values(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Trains a recipe; returns the loss by step, and the norm of every parameter after the last."""
    assert train(folder, "--name", name, optim__learning_rate=0.01, **RECIPES[name]) == 0
    run = folder / "runs" / name / "seed0"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {str(each["step"]): each["loss"] for each in records if each["kind"] == "train"}
    norms = {
        parameter: float(np.linalg.norm(values.astype(np.float64)))
        for parameter, values in sorted(load_file(run / "model.safetensors").items())
    }
    return {"losses": losses, "norms": norms}


@pytest.mark.parametrize(
    "name",
    ["lstm_additive"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name != "lstm_additive"],
)
def test_training_steps_match_the_stored_values(untrained, name):
    values = golden_values(untrained, name)
    if os.environ.get("PRINT_GOLDEN"):
        print("\n" + json.dumps({name: values}))
        pytest.skip("prints new values instead of comparing them")
    lines = GOLDEN.read_text().splitlines()
    stored = {key: values for line in lines for key, values in json.loads(line).items()}[name]
    assert values["losses"] == pytest.approx(stored["losses"], rel=1e-4)
    assert values["norms"] == pytest.approx(stored["norms"], rel=1e-4, abs=1e-5)
