"""Axis letters and a type alias for every tensor.

| letter | axis                       | letter | axis                           |
|--------|----------------------------|--------|--------------------------------|
| `b`    | batch (examples)           | `d`    | both directions, `2 * h`       |
| `t`    | time (tokens)              | `a`    | attention units                |
| `e`    | embedding, or layer input  | `g`    | number of gates times `h`      |
| `h`    | hidden units per direction | `v`    | vocabulary                     |

Inside the model, tensors are time-major (`t b ...`), because the recurrence scans over time.
`Batch` and `Output` are batch-major.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

Tokens = Int[Array, "b t"]
Positions = Int[Array, "t b"]  # positions[t, b]: index of the original token placed at t
Lengths = Int[Array, " b"]
Mask = Bool[Array, "t b"]  # True at tokens, False at padding
Inputs = Float[Array, "t b e"]
InputsAtTime = Float[Array, "b e"]
InputNoise = Float[Array, "b e"]  # a dropout mask, already divided by the keep probability
Hidden = Float[Array, "b h"]
HiddenStates = Float[Array, "t b h"]
States = Float[Array, "t b d"]
Query = Float[Array, "b d"]
Context = Float[Array, "b d"]
Scores = Float[Array, "t b"]
Weights = Float[Array, "t b"]  # attention weights; parameters are `params`
Logits = Float[Array, " b"]
Keys = Key[Array, " b"]  # one per example, so that noise is independent of other rows and devices

Params = Any  # a nested dict of arrays, with the structure of the modules


class Batch(NamedTuple):
    """Examples, padded on the right to one length. A filler row has weight 0 and length 0.

    Arrays are NumPy's on the host and JAX's on devices; the annotations name the latter.
    """

    tokens: Int[Array, "b t"]
    length: Int[Array, " b"]
    label: Int[Array, " b"]  # index into Task.label_names; -1: unlabelled
    weight: Float[Array, " b"]
    extras: dict[str, Any] = {}  # noqa: RUF012  never modified
    """Named arrays `[b ...]` for the objective, such as a teacher's logits."""


class Output(NamedTuple):
    """All results of the forward pass; the compiler removes those that are not used."""

    logits: Float[Array, " b"]
    weights: Float[Array, "b t"]
    states: Float[Array, "b t d"]
    last: Float[Array, "b d"]
    context: Float[Array, "b d"]
