"""NumPy float64 reference implementations of all cells, attentions and poolings."""

import numpy as np

from bilstm_attn.benchmark.float64_model import (
    additive_scores,
    lstm,
    softmax_without_padding,
    weighted_sum,
)
from bilstm_attn.nn.metrics import sigmoid

__all__ = ["RECURRENCES", "attention_scores", "lstm", "pool", "softmax_without_padding"]


def gru(params, inputs, lengths, reverse=False):
    """Returns all GRU states [t b h], zero at padding, and the last states [b h]."""
    w, u, b, n_bias = (
        np.asarray(params[name], np.float64)
        for name in ("input_kernel", "recurrent_kernel", "bias", "candidate_bias")
    )
    size = u.shape[0]
    states = np.zeros((*inputs.shape[:2], size))
    last = np.zeros((inputs.shape[1], size))
    for row, length in enumerate(lengths):
        h = np.zeros(size)
        steps = range(length)
        for t in reversed(steps) if reverse else steps:
            x = inputs[t, row].astype(np.float64) @ w + b
            r = sigmoid(x[:size] + h @ u[:, :size])
            z = sigmoid(x[size : 2 * size] + h @ u[:, size : 2 * size])
            n = np.tanh(x[2 * size :] + r * (h @ u[:, 2 * size :] + n_bias))
            h = (1 - z) * n + z * h
            states[t, row] = h
        last[row] = h
    return states, last


RECURRENCES = {"lstm": lstm, "gru": gru}


def attention_scores(name, params, states, query):
    """Returns the scores [t b] of the attention called `name`."""
    if name == "additive":
        return additive_scores(params, states, query)
    params = {key: np.asarray(value, np.float64) for key, value in params.items()}
    steps, rows, _ = states.shape
    scores = np.zeros((steps, rows))
    for t in range(steps):
        for row in range(rows):
            h, q = states[t, row], query[row]
            if name == "additive_keys":
                units = np.tanh(params["kernel"].T @ h + params["bias"])
                scores[t, row] = params["vector"][:, 0] @ units
            elif name == "dot":
                scores[t, row] = h @ q
            elif name == "uniform":
                scores[t, row] = 0.0
            else:
                raise AssertionError(f"write the equation of {name} here")
    return scores


def pool(name, states, last, weights, lengths):
    """Returns the context [b d] of the pooling called `name`."""
    if name == "attention":
        return weighted_sum(weights, states)
    context = np.zeros(states.shape[1:])
    for row, length in enumerate(lengths):
        tokens = states[:length, row]
        if name == "last":
            context[row] = last[row]
        elif length == 0:
            continue
        elif name == "mean":
            context[row] = tokens.mean(axis=0)
        elif name == "max":
            context[row] = tokens.max(axis=0)
        else:
            raise AssertionError(f"write the equation of {name} here")
    return context
