"""The tutorial's model in NumPy float64: the oracle of the benchmark and of the tests.

Written from the equations, one time step after another. Each step computes the rows that have a
token there, so values at padding are never read.
"""

import numpy as np
from numpy.typing import ArrayLike

from bilstm_attn.nn.metrics import sigmoid
from bilstm_attn.types import Batch, Params


def reference_logits(params: Params, batch: Batch) -> np.ndarray:
    """Returns the logit of each example `[b]`, without dropout.

    Args:
      params: parameters of a model with LSTM cells, additive attention and attention pooling.
      batch: the examples.
    """
    lengths = np.asarray(batch.length)
    states = as_float64(params["embedding"])[np.asarray(batch.tokens).T]
    query = np.zeros(0)
    for layer in params["encoder"]["layers"].values():
        forward, last_forward = lstm(layer["forward"], states, lengths)
        backward, last_backward = lstm(layer["backward"], states, lengths, reverse=True)
        states = np.concatenate([forward, backward], axis=-1)
        query = np.concatenate([last_forward, last_backward], axis=-1)
    scores = additive_scores(params["attention"], states, query)
    context = weighted_sum(softmax_without_padding(scores, lengths), states)
    dense, logit = params["dense"], params["logit"]
    units = np.maximum(context @ as_float64(dense["kernel"]) + as_float64(dense["bias"]), 0)
    return (units @ as_float64(logit["kernel"]))[:, 0] + as_float64(logit["bias"])


def lstm(
    params: Params, inputs: ArrayLike, lengths: np.ndarray, reverse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the states of one direction `[t b h]`, zero at padding, and the last one `[b h]`.

    `i, f, g, o = split(x W + h U + b)`; `c' = sigmoid(f) c + sigmoid(i) tanh(g)`;
    `h' = sigmoid(o) tanh(c')`. Hochreiter and Schmidhuber, 1997; forget gate of Gers et al., 2000.

    Args:
      params: `input_kernel` `[e 4h]`, `recurrent_kernel` `[h 4h]` and `bias` `[4h]`.
      inputs: `[t b e]`.
      lengths: number of tokens of each example `[b]`.
      reverse: reads each example from its last token to its first.
    """
    inputs = as_float64(inputs)
    w, u, b = (as_float64(params[name]) for name in ("input_kernel", "recurrent_kernel", "bias"))
    steps, rows, _ = inputs.shape
    h, c = np.zeros((rows, len(u))), np.zeros((rows, len(u)))
    states = np.zeros((steps, rows, len(u)))
    for t in reversed(range(steps)) if reverse else range(steps):
        has_token = t < lengths
        gates = inputs[t, has_token] @ w + h[has_token] @ u + b
        i, f, g, o = np.split(gates, 4, axis=-1)
        c[has_token] = sigmoid(f) * c[has_token] + sigmoid(i) * np.tanh(g)
        h[has_token] = sigmoid(o) * np.tanh(c[has_token])
        states[t, has_token] = h[has_token]
    return states, h


def additive_scores(params: Params, states: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Returns `v . tanh(W h[t] + U q + b)` `[t b]`.

    Bahdanau et al., 2015, arXiv:1409.0473, appendix A.1.2.

    Args:
      params: `states_kernel` `[d a]`, `query_kernel` `[d a]`, `bias` `[a]` and `vector` `[a 1]`.
      states: `[t b d]`.
      query: `[b d]`.
    """
    queries = as_float64(query) @ as_float64(params["query_kernel"]) + as_float64(params["bias"])
    units = np.tanh(as_float64(states) @ as_float64(params["states_kernel"]) + queries)
    return units @ as_float64(params["vector"])[:, 0]


def softmax_without_padding(scores: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the weights `[t b]`: a softmax over the first `length` scores, 0 beyond."""
    weights = np.zeros_like(scores)
    for row, length in enumerate(lengths):
        if length:
            powers = np.exp(scores[:length, row] - scores[:length, row].max())
            weights[:length, row] = powers / powers.sum()
    return weights


def weighted_sum(weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Returns the attention's context `sum_t weights[t] states[t]`, `[b d]`."""
    return np.einsum("tb,tbd->bd", weights, states)


def as_float64(array: ArrayLike) -> np.ndarray:
    """Returns a float64 array; rounds nothing that is float32."""
    return np.asarray(array, np.float64)
