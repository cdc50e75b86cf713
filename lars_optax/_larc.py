"""LARC: LARS in which the learning rate is an upper bound for each layer."""

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
    """The LARC optimizer: SGD with momentum and a clipped learning rate for each layer.

    A layer has weights w, a gradient g and a momentum buffer a. One update is

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)
        f = min(λ/γ, 1), or 1 if γ = 0
        a ← μa + f(g + βw)
        w ← w − γa

    where γ is `learning_rate`, η is `trust_coefficient`, β is `weight_decay`, ε is
    `eps` and μ is `momentum`. So the learning rate of a layer is min(λ, γ), and a
    learning rate for SGD is a good first value of γ. If λ ≥ γ in every layer, this is
    SGD with momentum and weight decay. The documentation of `scale_by_lars` describes
    the masks.

    The defaults of η and ε are those of LARC in NVIDIA apex. The two optimizers differ
    in three ways:

    1. On leaves outside `trust_ratio_mask`, f is `fallback_ratio` here. By default
       these are biases and norm parameters, which are those of normalisation layers.
       apex computes f for every parameter.
    2. Where a norm is zero, f is `fallback_ratio` and weight decay is applied here.
       apex uses the plain gradient there, without weight decay.
    3. γ may be a schedule here. The schedule may start at 0.

    Args:
      learning_rate: The learning rate γ, a number of at least 0 or a schedule.
      weight_decay: The weight decay β, a number of at least 0 or a schedule. 0 disables
        weight decay.
      weight_decay_mask: The leaves that get weight decay. The default excludes biases
        and norm parameters. True selects all leaves.
      trust_coefficient: The trust coefficient η, a number above 0.
      eps: The term ε in the denominator, a number of at least 0. 0 leaves it out.
      trust_ratio_mask: The leaves for which f is computed. The default excludes biases
        and norm parameters. True selects all leaves.
      momentum: The momentum μ, a number of at least 0 and below 1. None or 0 disables
        momentum.
      nesterov: Whether to use Nesterov momentum.
      denominator: "separate" for the denominator above, "joint" for that of
        `optax.lars`.
      fallback_ratio: The value of f on leaves outside `trust_ratio_mask` and where a
        norm is zero, a number of at least 0. At the default of 1 the update there is
        that of SGD.
      stacked_axes: The axis along which a leaf stacks several layers, an int or a tree.
        None means that every leaf is a single layer.
      axis_name: The mesh axes over which parameters are sharded inside `shard_map` or
        `pmap`. Leave it None elsewhere.
      accumulator_dtype: The dtype of the momentum buffer. None takes the dtype of each
        parameter.
      keep_layer_stats: Whether the state keeps the norms and the factor f of each
        layer.

    Returns:
      A transformation whose `update` needs `params`. Each update has the dtype of its
      parameter.

    Raises:
      ValueError: If an argument is invalid or does not fit the parameters. The
        conditions are those of `lars`.

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
      NVIDIA apex, apex/parallel/LARC.py with clip=True. apex removed it in May 2025, in
      commit cb65b8ed. NVIDIA's fork of Caffe, nvcaffe, clips in the same way since late
      2017, without β‖w‖ in the denominator.
    """
    learning_rate, momentum = check_sgd(learning_rate, momentum, nesterov)
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
