"""NumPy float64 loops, written from the equations, one example and one token at a time."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(params, inputs, lengths, reverse=False):
    """Returns states [t b h], zero at padding, and the last hidden state [b h]."""
    w, u, b = (
        np.asarray(params[name], np.float64)
        for name in ("input_kernel", "recurrent_kernel", "bias")
    )
    size = u.shape[0]
    states = np.zeros((*inputs.shape[:2], size))
    last = np.zeros((inputs.shape[1], size))
    for row, length in enumerate(lengths):
        h, c = np.zeros(size), np.zeros(size)
        steps = range(length)
        for t in reversed(steps) if reverse else steps:
            gates = inputs[t, row].astype(np.float64) @ w + h @ u + b
            i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states[t, row] = h
        last[row] = h
    return states, last


def gru(params, inputs, lengths, reverse=False):
    """Returns states [t b h], zero at padding, and the last hidden state [b h]."""
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
    """Returns the score of every state [t b], by the equation of the attention called `name`."""
    params = {key: np.asarray(value, np.float64) for key, value in params.items()}
    steps, rows, _ = states.shape
    scores = np.zeros((steps, rows))
    for t in range(steps):
        for row in range(rows):
            h, q = states[t, row], query[row]
            if name == "additive":
                units = np.tanh(
                    params["states_kernel"].T @ h + params["query_kernel"].T @ q + params["bias"]
                )
                scores[t, row] = params["vector"][:, 0] @ units
            elif name == "additive_keys":
                units = np.tanh(params["kernel"].T @ h + params["bias"])
                scores[t, row] = params["vector"][:, 0] @ units
            elif name == "dot":
                scores[t, row] = h @ q
            elif name == "uniform":
                scores[t, row] = 0.0
            else:
                raise AssertionError(f"write the equation of {name} here")
    return scores


def softmax_without_padding(scores, lengths):
    """Returns the weights [t b]: a softmax over the first `length` scores, 0 beyond."""
    weights = np.zeros_like(scores)
    for row, length in enumerate(lengths):
        if length:
            powers = np.exp(scores[:length, row] - scores[:length, row].max())
            weights[:length, row] = powers / powers.sum()
    return weights


def pool(name, states, last, weights, lengths):
    """Returns one vector per example [b d], by the pooling called `name`."""
    context = np.zeros(states.shape[1:])
    for row, length in enumerate(lengths):
        own = states[:length, row]
        if name == "last":
            context[row] = last[row]
        elif length == 0:
            continue
        elif name == "attention":
            context[row] = sum(weights[t, row] * own[t] for t in range(length))
        elif name == "mean":
            context[row] = own.mean(axis=0)
        elif name == "max":
            context[row] = own.max(axis=0)
        else:
            raise AssertionError(f"write the equation of {name} here")
    return context
