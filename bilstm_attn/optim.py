"""Schedule and optimiser from a config."""

import jax
import optax

from bilstm_attn.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, over a run of `steps` steps."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(rate)
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(warmup, 1)), after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba, 2015, arXiv:1412.6980), with clipping and decay if asked for.

    Deviation from Keras: epsilon is added to the corrected root, as in the paper; Keras adds it
    before the correction of bias ("epsilon hat"). At 1e-7 the two agree after the first steps.
    """
    chain = []
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    chain.append(
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        )
    )
    return optax.chain(*chain)
