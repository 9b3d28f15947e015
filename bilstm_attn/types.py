"""The dimension key and a name for every tensor.

| letter | axis                       | letter | axis                           |
|--------|----------------------------|--------|--------------------------------|
| `b`    | batch (a review)           | `d`    | both directions, `2 * h`       |
| `t`    | time (a token)             | `a`    | attention units                |
| `e`    | embedding, or layer input  | `g`    | gates times `h`                |
| `h`    | hidden units, 1 direction  | `v`    | vocabulary                     |

Inside the model tensors are time-major (`t b ...`), for the recurrence walks over time. `Batch` and
`Output` are batch-major.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key

Tokens = Int[Array, "b t"]
Positions = Int[Array, "t b"]  # which of a review's tokens stands there, where some were left out
Lengths = Int[Array, " b"]
Mask = Bool[Array, "t b"]  # true at a review's own tokens
Inputs = Float[Array, "t b e"]
InputsAtTime = Float[Array, "b e"]
InputNoise = Float[Array, "b e"]  # a dropout mask, already divided by the rate of keeping
Hidden = Float[Array, "b h"]
HiddenStates = Float[Array, "t b h"]
States = Float[Array, "t b d"]
Projected = Float[Array, "t b u"]  # states, each through the head's first layer
Query = Float[Array, "b d"]
Context = Float[Array, "b d"]
Scores = Float[Array, "t b"]
Weights = Float[Array, "t b"]  # attention weights; parameters are `params`
Logits = Float[Array, " b"]
Keys = Key[Array, " b"]  # one a review, so that its noise depends on no other row and no device

Params = Any  # a tree of arrays, as deep as the modules


class Batch(NamedTuple):
    """Reviews, padded on the right to one length. A filler row has weight 0 and length 0.

    NumPy arrays on the host, JAX arrays on devices; type checkers are told of the latter.
    """

    tokens: Int[Array, "b t"]
    length: Int[Array, " b"]
    label: Int[Array, " b"]  # 1 positive, 0 negative, -1 unlabelled
    weight: Float[Array, " b"]
    extras: Any = ()  # arrays `[b ...]` of what else an objective needs to know of them


class Output(NamedTuple):
    """Everything the model computed; what nobody reads, the compiler drops."""

    logits: Float[Array, " b"]
    weights: Float[Array, "b t"]
    states: Float[Array, "b t d"]
    last: Float[Array, "b d"]
    context: Float[Array, "b d"]
