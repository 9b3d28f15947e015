"""Learning-rate schedule and optimiser from a config."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilstm_attn.config import OptimConfig
from bilstm_attn.types import Params

Optimizer = optax.GradientTransformation


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, over a run of `steps` steps."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(rate)
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(warmup, 1)), after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> Optimizer:
    """Returns Adam (Kingma and Ba, 2015, arXiv:1412.6980) with the options of the config.

    Epsilon is "epsilon hat", as in Keras and at the end of section 2 of the paper: it is added to
    the root before bias correction. In optax's form this is `epsilon / sqrt(1 - beta2^t)`, thirty
    times epsilon at first. It matters here: gradients of the vectors of rare words are about as
    small, and with a smaller epsilon these words are memorised.
    """

    def epsilon(count: Array) -> Array:
        return config.epsilon / jnp.sqrt(1 - config.beta2 ** (count + 1.0))

    adam = optax.inject_hyperparams(optax.scale_by_adam, static_args=("b1", "b2", "eps_root"))
    given = {"b1": config.beta1, "b2": config.beta2}
    chain = [
        optax.add_decayed_weights(config.l2_penalty, mask=_all_but_attention),
        scale_by_amsgrad(**given, eps=config.epsilon)
        if config.amsgrad
        else adam(**given, eps=epsilon),
        optax.add_decayed_weights(
            config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    ]
    if config.l2_penalty == 0:
        del chain[0]
    if config.clip_norm is not None:
        chain.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*chain)


def freeze(optimizer: Optimizer, modules: Collection[str]) -> Optimizer:
    """Returns an optimiser that leaves the parameters of the named modules unchanged."""

    def is_frozen(params: Params) -> dict[str, bool]:
        return {name: name in modules for name in params}

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), is_frozen))


def scale_by_amsgrad(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Returns `m / (1 - b1^t) * sqrt(1 - b2^t) / (sqrt(max over steps of v) + eps)`.

    Reddi et al., 2018, arXiv:1904.09237, with Adam's corrections, as in Keras (PyTorch adds eps
    after the correction of the root). optax by itself corrects v before it takes the maximum: the
    first steps' v, from few gradients, then stays in the denominator for good.
    """
    return optax.chain(
        optax.scale_by_amsgrad(b1, b2, eps, bias_correction_nu=False),
        optax.scale_by_schedule(lambda count: jnp.sqrt(1 - b2 ** (count + 1.0))),
    )


def _all_but_attention(params: Params) -> Any:
    return {
        name: jax.tree.map(lambda _, name=name: name != "attention", inner)
        for name, inner in params.items()
    }
