"""LARC: LARS whose layers never learn faster than the learning rate."""

from typing import Any

import jax
import optax

from lars_optax._masks import BY_ROLE, Mask
from lars_optax._momentum import in_dtype_of_params, wide_momentum
from lars_optax._rule import Settings
from lars_optax._transform import transform
from lars_optax._validate import check_sgd


def larc(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = BY_ROLE,
    trust_coefficient: jax.typing.ArrayLike = 0.02,
    eps: jax.typing.ArrayLike = 1e-8,
    trust_ratio_mask: Mask = BY_ROLE,
    momentum: jax.typing.ArrayLike | None = 0.9,
    nesterov: bool = False,
    *,
    denominator: str = "separate",
    fallback_ratio: jax.typing.ArrayLike = 1.0,
    stacked_axes: Any = None,
    axis_name: Any = None,
    accumulator_dtype: Any = None,
    keep_layer_stats: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """LARC: SGD with momentum at the rate min(λ, γ) in each layer.

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)
        f = min(λ/γ, 1), and 1 where γ = 0
        a ← μa + f(g + βw)
        w ← w − γa

    with γ `learning_rate`, μ `momentum` and the rest as in `scale_by_lars`. So γ is an
    upper bound, as for SGD, and not LARS's large rate; where λ ≥ γ in all layers this
    is SGD with momentum and decay.

    How this differs from apex's LARC, whose η and ε are the defaults:

    1. Leaves outside `trust_ratio_mask`, biases and norm parameters by default, take
       f = `fallback_ratio`. There, every parameter is adapted.
    2. At a zero norm f is `fallback_ratio` too, and the decay stays. There, the decay
       is dropped with the ratio.
    3. γ may be a schedule, 0 at its start too.

    Args:
      learning_rate: γ ≥ 0, a number or a schedule.
      weight_decay: β ≥ 0, a number or a schedule.
      weight_decay_mask: the leaves that are decayed.
      trust_coefficient: η > 0.
      eps: ε ≥ 0.
      trust_ratio_mask: the leaves that take f.
      momentum: μ, 0 ≤ μ < 1; None or 0 for none.
      nesterov: whether the momentum is Nesterov's.
      denominator: "separate" or "joint".
      fallback_ratio: ≥ 0, in place of f where there is none. 1, the default, is plain
        SGD: γ is of the size of SGD's learning rates here.
      stacked_axes: where leaves stack several layers.
      axis_name: what parameters are sharded over, inside `shard_map` and `pmap`.
      accumulator_dtype: dtype of the momentum buffer, None for the parameters'.
      keep_layer_stats: whether the state keeps each layer's norms and its factor f.

    Returns:
      A transformation whose update needs `params`.

    Raises:
      ValueError: as `lars`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.5)}
      >>> for learning_rate in (0.01, 1.0):  # λ = 0.02 · 2 / 1 = 0.04
      ...     tx = larc(learning_rate)
      ...     updates, _ = tx.update(grads, tx.init(params), params)
      ...     print(updates["kernel"][0, 0], updates["bias"][0])
      -0.005 -0.005
      -0.02 -0.5

    References:
      NVIDIA apex, apex/parallel/LARC.py, clip=True; nvcaffe's larc of late 2017
      clips likewise and leaves β‖w‖ out of the denominator.
    """
    check_sgd(learning_rate, momentum, nesterov)
    settings = Settings(
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        trust_coefficient=trust_coefficient,
        eps=eps,
        trust_ratio_mask=trust_ratio_mask,
        denominator=denominator,
        fallback_ratio=fallback_ratio,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
        clip_at=learning_rate,
    )
    return optax.chain(
        transform(settings, keep_layer_stats),
        wide_momentum(momentum, nesterov, accumulator_dtype),
        in_dtype_of_params(optax.scale_by_learning_rate(learning_rate)),
    )
