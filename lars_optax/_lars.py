"""LARS as a gradient transformation and as an optimizer."""

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
    """Add weight decay to each layer's gradient and scale it by the trust ratio.

    Each leaf of the parameters is a layer with weights w and a gradient g. The trust
    ratio λ of a layer and its update are

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)      denominator="separate", as in the paper
        λ = η‖w‖ / (‖g + βw‖ + ε)        denominator="joint", as in `optax.lars`
        update = λ (g + βw)

    where η is `trust_coefficient`, β is `weight_decay` and ε is `eps`. The rule has
    three exceptions:

    - On leaves outside `weight_decay_mask`, β is 0 in the update and in λ.
    - On leaves outside `trust_ratio_mask`, `fallback_ratio` replaces λ. The other
      leaves are called adapted.
    - In an adapted layer, `fallback_ratio` replaces λ where ‖w‖ is 0, and where the
      norm of the gradient is 0. This norm is ‖g‖ with the separate denominator and
      ‖g + βw‖ with the joint one.

    This transform applies no learning rate and no momentum, and it does not negate the
    update. Other transforms of a chain do this. With a learning rate γ and a momentum
    μ, three orders are in use:

        scaled    chain(scale_by_lars(β), scale_by_learning_rate(γ), trace(μ))
        unscaled  chain(scale_by_lars(β), trace(μ), scale_by_learning_rate(γ))
        post      chain(add_decayed_weights(β, exclude_bias_and_norm), trace(μ),
                        scale_by_lars(denominator="joint"), scale_by_learning_rate(γ))

    The scaled order is that of the paper, tf.contrib since TensorFlow 1.15, MLPerf's
    optimizer for TensorFlow 2, MXNet, Flax, SimCLR, the fused LARS of ROCm/apex,
    `optax.lars` and `lars`. The unscaled order is that of BYOL, Barlow Twins, VICReg,
    MoCo-v3, MAE, SwAV, timm, solo-learn, Lightning Bolts, pytorch_optimizer and
    NVIDIA's MLPerf code for MXNet. These two differ only when the learning rate
    changes. The post order is that of SimCLR's optimizer with `classic_momentum=False`.
    There the momentum does not make the steps longer. tf.contrib in TensorFlow 1.13 and
    1.14 multiplies the momentum's output by the trust ratio of the gradient, which no
    chain does. The file examples/chains.py has the settings of MLPerf, BYOL and SimCLR.

    Args:
      weight_decay: The weight decay β, a number of at least 0 or a schedule. 0 disables
        weight decay.
      weight_decay_mask: The leaves that get weight decay. It is True for all leaves, a
        tree of bool, a prefix of such a tree, a function from the parameters to one of
        these, or the name "exclude_bias_and_norm".
      trust_coefficient: The trust coefficient η, a number above 0.
      eps: The term ε in the denominator, a number of at least 0. 0 leaves it out, as
        the paper does.
      trust_ratio_mask: The leaves that get a trust ratio, in the same forms as
        `weight_decay_mask`.
      denominator: "separate" or "joint", as above.
      fallback_ratio: The factor that replaces λ, a number of at least 0. With the
        default of 0.02, the learning rate of biases and norm parameters is 0.02 times
        that of the chain. The authors' solver, `optax.lars` and MLPerf use a ratio of
        1. In this project's study a ratio of 1 failed at learning rates at which 0.02
        trained. See "The default of fallback_ratio" in docs/study.md.
      max_ratio: An upper bound of λ, a number above 0. None sets no bound.
        It does not bound `fallback_ratio`.
      stacked_axes: The axis along which a leaf stacks several layers, as the leaves of
        `nn.scan` and of vmapped ensembles do. Each slice then has its own λ. An int
        holds for all leaves. A prefix tree of ints has None for each leaf that is a
        single layer. A function from the parameters to such a tree is allowed too. The
        default None means that every leaf is a single layer.
      axis_name: The mesh axes over which parameters are sharded inside `shard_map` or
        `pmap`. Norms are summed over these axes. A name or a tuple of names holds for
        every leaf. A prefix tree of `PartitionSpec` gives each leaf its own axes. Pass
        such a tree if an axis of stacked layers is itself sharded. Leave `axis_name`
        None under `jit` and where parameters are replicated.
      keep_layer_stats: Whether the state keeps the `LayerStats` of each layer, which
        are ‖w‖, ‖g‖ and the trust ratio that the update used. Read them with
        `optax.tree.get(state, "layer_stats")`. They are 0 before the first update. A
        leaf without a gradient keeps its last statistics. ‖g‖ is the norm of the
        gradient that reaches this transform, for example after clipping. If the
        parameters differ between the devices of a `shard_map`, call `init` outside of
        it.

    Returns:
      A transformation whose `update` needs `params`. Each update has the dtype of its
      parameter. Norms are computed in float32, or in float64 for float64 parameters. A
      gradient of None stays None.

      The state is a `ScaleByLarsState` if `weight_decay` is a schedule or
      `keep_layer_stats` is True. Otherwise it is empty. Its structure, shapes and
      dtypes never change after `init`.

      If the norm of an adapted layer is not finite, its update becomes NaN, so the
      failure is visible. `optax.apply_if_finite` skips an update whose gradients are
      not finite. It does not skip finite gradients whose norm overflows. A float32 norm
      overflows above 1.8e19. An element smaller than about 1e-19 may not count, because
      its square underflows.

    Raises:
      ValueError: If an argument is out of range, or if a mask is False or has an
        unknown name. `init` and `update` raise it if a mask, `stacked_axes` or
        `axis_name` does not fit the parameters, if a default mask selects no leaf, or
        if a parameter is not floating-point. `update` raises it if `params` is missing,
        if the updates do not match the parameters, or if a schedule returns an invalid
        value. If a hyperparameter or the value of a schedule is a JAX array, only its
        shape and dtype are checked. Floating-point arrays of fewer than 32 bits are not
        accepted.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_lars(5e-4), optax.scale_by_learning_rate(10.0))
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> grads = {"kernel": jnp.full((2, 2), 8.0), "bias": jnp.full(2, 0.1)}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> # The kernel's update has the norm γη‖w‖. The bias's update is −0.02 γg.
      >>> print(updates["kernel"][0], updates["bias"])
      [-0.03 -0.03] [-0.02 -0.02]

    References:
      You, Gitman, Ginsburg 2017, "Scaling SGD Batch Size to 32K for ImageNet Training",
      https://arxiv.org/abs/1708.03888v1, section 3.2.3, steps 1 to 3. Its step 1
      prints β‖∇w‖ in the denominator. That is a misprint for β‖w‖, which the authors'
      solver computes.
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
    """The LARS optimizer: SGD with momentum and one learning rate for each layer.

    A layer has weights w, a gradient g and a momentum buffer a. One update is

        λ = η‖w‖ / (‖g‖ + β‖w‖ + ε)
        a ← μa + γλ(g + βw)
        w ← w − a

    where γ is `learning_rate`, η is `trust_coefficient`, β is `weight_decay`, ε is
    `eps` and μ is `momentum`. The documentation of `scale_by_lars` describes the masks,
    the rule for zero norms and the chains with another order of momentum.

    Before the momentum, an update moves a layer with a trust ratio by at most γη‖w‖,
    whatever the scale of its gradient. Momentum makes the steps up to 1/(1 − μ) times
    longer. So γ is much larger than the learning rate of SGD: the paper tunes it from 1
    to 50.

    The positional arguments are those of `optax.lars`. The two optimizers differ in
    five ways:

    1. By default, biases and norm parameters have no weight decay and no trust ratio
       here. Norm parameters are those of normalisation layers. The learning rate of
       both is γ · `fallback_ratio`. `optax.lars` gives them weight decay and a trust
       ratio. There a bias that starts at zero has the learning rate γ in its first
       step. After that its learning rate is proportional to its norm.
    2. Where a norm is zero, λ is `fallback_ratio` here, which is 0.02 by default. In
       `optax.lars` λ is 1 there.
    3. The denominator is the paper's here. Optax's is denominator="joint". With that,
       with both masks True and with fallback_ratio=1.0, both optimizers give the same
       float32 updates up to rounding.
    4. The default masks work under `optax.inject_hyperparams`. A mask that is a
       function must be named in its `static_args`, because `inject_hyperparams` takes
       functions for schedules. Otherwise the mask is called with the step count. This
       raises an error unless the mask returns True for a step count.
    5. Norms are computed in at least float32 here. The norm of a sharded layer is that
       of the whole layer, and each stacked layer has its own norm. A momentum of None
       or 0 allocates no buffer.

    Args:
      learning_rate: The learning rate γ, a number of at least 0 or a schedule.
      weight_decay: The weight decay β, a number of at least 0 or a schedule. 0 disables
        weight decay.
      weight_decay_mask: The leaves that get weight decay. The default excludes biases
        and norm parameters. True selects all leaves.
      trust_coefficient: The trust coefficient η, a number above 0.
      eps: The term ε in the denominator, a number of at least 0. 0 leaves it out.
      trust_ratio_mask: The leaves that get a trust ratio. The default excludes biases
        and norm parameters. True selects all leaves.
      momentum: The momentum μ, a number of at least 0 and below 1. None or 0 disables
        momentum.
      nesterov: Whether to use Nesterov momentum.
      denominator: "separate" for the denominator above, "joint" for that of
        `optax.lars`.
      fallback_ratio: The factor that replaces λ on leaves outside `trust_ratio_mask`
        and where a norm is zero, a number of at least 0.
      stacked_axes: The axis along which a leaf stacks several layers, an int or a tree.
        None means that every leaf is a single layer.
      axis_name: The mesh axes over which parameters are sharded inside `shard_map` or
        `pmap`. Leave it None elsewhere.
      accumulator_dtype: The dtype of the momentum buffer. None takes the dtype of each
        parameter. Sums are computed in at least float32 for any dtype.
      keep_layer_stats: Whether the state keeps the norms and the trust ratio of each
        layer.

    Returns:
      A transformation whose `update` needs `params`. Each update has the dtype of its
      parameter. The state has the structure of that of chain(scale_by_lars(β),
      scale_by_learning_rate(γ), trace(μ)), so a checkpoint of one restores into the
      other.

    Raises:
      ValueError: If an argument is out of range, or if `accumulator_dtype` is neither a
        floating-point nor a complex dtype. `init` and `update` raise it if a mask,
        `stacked_axes` or `axis_name` does not fit the parameters, or if a default mask
        selects no leaf. `init` raises it if `accumulator_dtype` is real and a parameter
        is complex. `update` raises it if the shape of a momentum buffer differs
        from that of its parameter. The other conditions are those of `scale_by_lars`.

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
      You, Gitman, Ginsburg 2017, "Scaling SGD Batch Size to 32K for ImageNet Training",
      https://arxiv.org/abs/1708.03888v1, section 3.2.3.
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
    )
    return optax.chain(
        transform(settings, keep_layer_stats),
        optax.scale_by_learning_rate(learning_rate),
        in_dtype_of_params(wide_momentum(momentum, nesterov, accumulator_dtype)),
    )
