"""Schedule and optimiser from a config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilstm_attn.config import OptimConfig
from bilstm_attn.types import Params


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, over a run of `steps` steps."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(rate)
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(warmup, 1)), after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba, 2015, arXiv:1412.6980), with what else the config asks for.

    Epsilon is "epsilon hat", as in Keras and in the order of computation that the paper's section 2
    ends with: it is added to the uncorrected root. So it weighs `epsilon / sqrt(1 - beta2^t)` in
    optax's form, thirty times epsilon at first. That matters here: gradients of rare words' vectors
    are about as small, and without it they are learned by heart.
    """

    def epsilon(count: Array) -> Array:
        return config.epsilon / jnp.sqrt(1 - config.beta2 ** (count + 1.0))

    scale = optax.scale_by_amsgrad if config.amsgrad else optax.scale_by_adam
    adam = optax.inject_hyperparams(scale, static_args=("b1", "b2", "eps_root"))
    chain = [
        optax.add_decayed_weights(config.l2_penalty, mask=_all_but_attention),
        adam(b1=config.beta1, b2=config.beta2, eps=epsilon),
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


def _all_but_attention(params: Params) -> Any:
    return {
        name: jax.tree.map(lambda _, name=name: name != "attention", inner)
        for name, inner in params.items()
    }
