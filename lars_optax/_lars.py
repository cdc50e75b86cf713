"""LARS as a transform and as an optimizer, which is a chain around it."""

from typing import Any

import jax
import optax

from lars_optax._masks import BY_ROLE, Mask
from lars_optax._momentum import in_dtype_of_params, wide_momentum
from lars_optax._rule import FALLBACK_RATIO, Settings
from lars_optax._transform import transform
from lars_optax._validate import check_sgd


def scale_by_lars(
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = BY_ROLE,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = BY_ROLE,
    *,
    denominator: str = "separate",
    fallback_ratio: jax.typing.ArrayLike = FALLBACK_RATIO,
    max_ratio: jax.typing.ArrayLike | None = None,
    stacked_axes: Any = None,
    axis_name: Any = None,
    keep_layer_stats: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Add the weight decay and scale each layer by its trust ratio; nothing else.

    For the weights w of one layer with gradient g,

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)      denominator="separate", the paper's
        λ = η‖w‖ / (‖g + βw‖ + ε)         denominator="joint", `optax.lars`'s
        update = λ (g + βw)

    with η `trust_coefficient`, β `weight_decay`, ε `eps`. The fallback ratio replaces λ
    on leaves outside `trust_ratio_mask`, where ‖w‖ = 0, and where ‖g‖ = 0 (separate) or
    ‖g + βw‖ = 0 (joint). β is 0 on leaves outside `weight_decay_mask`, in the update
    and in the denominator. There is no learning rate, sign or momentum here: the order
    in which a chain adds them makes the three kinds of LARS in use.

        scaled    chain(scale_by_lars(β), scale_by_learning_rate(γ), trace(μ))
        unscaled  chain(scale_by_lars(β), trace(μ), scale_by_learning_rate(γ))
        post      chain(add_decayed_weights(β, exclude_bias_and_norm), trace(μ),
                        scale_by_lars(denominator="joint"), scale_by_learning_rate(γ))

    Scaled is the paper's, TensorFlow's, SimCLR's and Optax's, and what `lars` is;
    unscaled is BYOL's and that of every torch.optim port. They differ only when the
    learning rate changes. Post is `classic_momentum=False` of SimCLR's optimizer: the
    momentum does not lengthen its steps. examples/chains.py has MLPerf's, BYOL's and
    SimCLR's settings of each.

    Args:
      weight_decay: β ≥ 0, a number or a schedule.
      weight_decay_mask: the leaves that are decayed. True for all, a tree of bool or a
        prefix of one, a callable from params to one, or "exclude_bias_and_norm".
      trust_coefficient: η > 0.
      eps: ε ≥ 0; 0 in the paper.
      trust_ratio_mask: the leaves that take λ, likewise.
      denominator: "separate" or "joint".
      fallback_ratio: ≥ 0, the factor in place of λ on leaves without one; 0.02. So the
        learning rate of biases and norm parameters is 0.02 times that of the chain. A
        ratio of 1 is the rule of the authors' solver, of `optax.lars` and of MLPerf. In
        this project's study it fails at learning rates where 0.02 trains ("The default
        of fallback_ratio" in docs/study.md).
      max_ratio: an upper bound of λ, None for none. It does not bound fallback_ratio.
      stacked_axes: for leaves that stack several layers, as `nn.scan` and vmapped
        ensembles make them: the axis of the layers, an int for all leaves, a prefix
        tree of ints with None where a leaf is one layer, or a function from params to
        such a tree. Each slice has its own λ.
      axis_name: inside `shard_map` or `pmap` with sharded parameters, what they are
        sharded over: an axis name or a tuple of names for all leaves, or a prefix tree
        of `PartitionSpec`. Norms are summed over just those axes. A name is summed over
        for every leaf; where the axis of stacked layers is itself sharded, give specs.
        Under `jit`, and where parameters are replicated, leave it None.
      keep_layer_stats: whether the state keeps each layer's `LayerStats`: ‖w‖, ‖g‖ and
        the trust ratio, as the update used them. Read them with
        `optax.tree.get(state, "layer_stats")`. They are 0 before the first update, and
        a leaf without a gradient keeps the statistics of its last one. ‖g‖ is the norm
        of the gradient that this transform is given, after clipping or averaging.
        Where `shard_map` splits the axis of stacked layers, call `init` outside of it.

    Returns:
      A transformation whose update needs `params`. Updates have the dtype of their
      parameter; norms are taken in float32 at least. Its state is a
      `ScaleByLarsState`, whose structure, shapes and dtypes are fixed from `init` on,
      if `weight_decay` is a schedule or `keep_layer_stats` is set. Else it has none. A
      None gradient stays None. An
      adapted layer whose norm is not finite becomes NaN: it does not stand still.
      (`optax.apply_if_finite` looks at gradients alone: it skips the step of an
      infinite one, not that of finite ones whose norm overflows.) In float32 a norm is
      right up to 1.8e19 and, element by element, down to about 1e-19, where squares
      leave float32's range.

    Raises:
      ValueError: on arguments out of range, a mask that is False, has an unknown name
        or does not fit the parameters, a default mask that selects no leaf, axes or
        specs that do not fit, missing params, params or updates that are not
        floating-point, and updates unlike params. `init` raises the errors that
        depend on params alone. Of traced and jax values only shape and dtype are
        checked, and floating-point arrays of fewer than 32 bits are refused.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_lars(5e-4), optax.scale_by_learning_rate(10.0))
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.full((2, 2), 8.0), "bias": jnp.full(2, 0.1)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["kernel"][0], updates["bias"])  # -γη‖w‖ long; -0.02 γg
      [-0.03 -0.03] [-0.02 -0.02]

    References:
      You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888, section 3.2.3, steps
      1 to 3. Its step 1 prints β‖∇w‖ in the denominator, a misprint for β‖w‖, which the
      authors' solver computes.
    """
    settings = Settings(
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        trust_coefficient=trust_coefficient,
        eps=eps,
        trust_ratio_mask=trust_ratio_mask,
        denominator=denominator,
        fallback_ratio=fallback_ratio,
        max_ratio=max_ratio,
        stacked_axes=stacked_axes,
        axis_name=axis_name,
    )

    return in_dtype_of_params(transform(settings, keep_layer_stats))


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = BY_ROLE,
    trust_coefficient: jax.typing.ArrayLike = 0.001,
    eps: jax.typing.ArrayLike = 0.0,
    trust_ratio_mask: Mask = BY_ROLE,
    momentum: jax.typing.ArrayLike | None = 0.9,
    nesterov: bool = False,
    *,
    denominator: str = "separate",
    fallback_ratio: jax.typing.ArrayLike = FALLBACK_RATIO,
    stacked_axes: Any = None,
    axis_name: Any = None,
    accumulator_dtype: Any = None,
    keep_layer_stats: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """LARS: SGD with momentum in which each layer has its own learning rate γλ.

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)
        a ← μa + γλ(g + βw)
        w ← w − a

    with γ `learning_rate`, μ `momentum` and the rest as in `scale_by_lars`, which see
    for masks, zero norms, and for the chains of the other momentum orders. Before the
    momentum, which lengthens it up to 1/(1 − μ) times, the step of an adapted layer is
    at most γη‖w‖ long, whatever its gradient's scale. So γ is large: the paper tunes
    it from 1 to 50.

    How this differs from `optax.lars`, whose positional arguments it takes:

    1. By default biases and norm parameters have neither weight decay nor a trust
       ratio. Their learning rate is γ · fallback_ratio. `optax.lars` decays and adapts
       them: one that starts at zero has the learning rate γ in its first step, and a
       rate in proportion to its norm afterwards.
    2. Where a norm is zero, λ is `fallback_ratio`, 0.02 by default. In `optax.lars` it
       is 1.
    3. The denominator is the paper's; denominator="joint" is Optax's. With that, both
       masks True and fallback_ratio=1.0, both optimizers give the same float32
       updates, to rounding.
    4. The default masks work under `optax.inject_hyperparams`. It takes callables for
       schedules, so name masks that are callables in its `static_args`. A mask
       that is not named there is called with the step count, and raises an error
       unless it returns True for it.
    5. Norms are computed in float32 at least. The norm of a sharded layer is that of
       the whole layer, and each stacked layer has its own. A momentum of None or 0
       keeps no buffer.

    Args:
      learning_rate: γ ≥ 0, a number or a schedule.
      weight_decay: β ≥ 0, a number or a schedule.
      weight_decay_mask: the leaves that are decayed.
      trust_coefficient: η > 0.
      eps: ε ≥ 0.
      trust_ratio_mask: the leaves that take λ.
      momentum: μ, 0 ≤ μ < 1; None or 0 for none.
      nesterov: whether the momentum is Nesterov's.
      denominator: "separate" or "joint".
      fallback_ratio: ≥ 0, in place of λ where there is none; 0.02 by default.
      stacked_axes: where leaves stack several layers.
      axis_name: what parameters are sharded over, inside `shard_map` and `pmap`.
      accumulator_dtype: dtype of the momentum buffer, None for the parameters'. Sums
        are taken in float32 at least, and updates have the parameters' dtype.
      keep_layer_stats: whether the state keeps each layer's norms and trust ratio.

    Returns:
      A transformation whose update needs `params`. It is a chain of three, and its
      state has the structure of chain(scale_by_lars(β), scale_by_learning_rate(γ),
      trace(μ)), so a checkpoint of one restores into the other.

    Raises:
      ValueError: as `scale_by_lars`, for γ and μ out of range, for an
        `accumulator_dtype` that is not a dtype, and for a real one where parameters
        are complex.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = lars(learning_rate=5.0)
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
      >>> def loss(params):
      ...     return jnp.mean((params["kernel"].sum(0) + params["bias"] - 4.0) ** 2)
      >>> state, losses = tx.init(params), []
      >>> for _ in range(6):
      ...     value, grads = jax.value_and_grad(loss)(params)
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     losses.append(f"{value:.2f}")
      >>> print(*losses)
      4.00 3.45 2.54 1.54 0.69 0.16

    References:
      You, Gitman, Ginsburg 2017, https://arxiv.org/abs/1708.03888, section 3.2.3.
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
    )
    return optax.chain(
        transform(settings, keep_layer_stats),
        optax.scale_by_learning_rate(learning_rate),
        in_dtype_of_params(wide_momentum(momentum, nesterov, accumulator_dtype)),
    )
