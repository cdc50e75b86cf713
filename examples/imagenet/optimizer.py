"""From a configuration to a schedule in steps and an Optax chain.

Weight decay lives here, never in the loss. SGD follows Caffe: the rate inside the
momentum, as LARS has it, so that the two differ in the trust ratio alone.
"""

import optax

import lars_optax

from .config import Optimizer


def make_schedule(
    config: Optimizer, *, steps_per_epoch: int, epochs: int
) -> optax.Schedule:
    """Linear warm-up from 0, then polynomial decay that reaches 0 at the last step."""
    return lars_optax.warmup_polynomial_decay_schedule(
        0.0,
        config.learning_rate,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        decay_steps=epochs * steps_per_epoch,
        power=config.power,
    )


def make_optimizer(
    config: Optimizer, schedule: optax.Schedule
) -> optax.GradientTransformation:
    mask = True if config.layers == "all" else lars_optax.exclude_bias_and_norm
    if config.name == "lars":
        return lars_optax.lars(
            schedule,
            config.weight_decay,
            mask,
            config.trust_coefficient,
            trust_ratio_mask=mask,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fallback_ratio=config.fallback_ratio,
        )
    return optax.chain(
        optax.add_decayed_weights(
            config.weight_decay, None if config.layers == "all" else mask
        ),
        optax.scale_by_learning_rate(schedule),
        optax.trace(config.momentum, config.nesterov),
    )
