"""One update and one evaluation, as pure functions of a state and a batch.

Under `pmap` and `shard_map` the batch is one device's share, and `axis_name` the name
of the device axis. Under `jit` the batch is the whole one, and `axis_name` is None.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

import lars_optax

from ..data.dataset import Array, Batch
from .moments import age, from_moments, to_moments

SOLVERS = "solvers"  # the vmap axis of the parts that a device processes at once


class TrainState(NamedTuple):
    """The state of training: all that an update changes, and the random key."""

    step: jax.Array  # int32 [], number of updates done
    rng: jax.Array  # uint32 [2], a constant key, from which all random keys are derived
    params: optax.Params
    batch_stats: Any  # BatchNorm's running means and variances; {} without BatchNorm
    opt_state: optax.OptState
    finite: jax.Array  # bool [], whether all updates so far were finite
    # Moving averages over the updates, float32 []; None if they are not wanted.
    noise_scale: lars_optax.NoiseScale | None = None


def init_state(
    seed: int,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    noise_scale: bool = False,
) -> TrainState:
    """Returns the state before the first update.

    `image_shape` is that of one image. With `noise_scale` every update estimates the
    gradient noise scale.
    """
    # On a CPU, XLA takes twelve seconds to compile JAX's default generator.
    key = jax.random.key(seed, impl="rbg")
    variables = _init_variables(key, model, image_shape)
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32),
        jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
        params,
        variables.get("batch_stats", {}),
        tx.init(params),
        jnp.ones((), bool),
        lars_optax.NoiseScale(*jnp.zeros(3)) if noise_scale else None,
    )


# Without the optimizer's state, so that it is compiled once for all optimizers.
@partial(jax.jit, static_argnames=("model", "image_shape"))
def _init_variables(
    key: jax.Array, model: nn.Module, image_shape: tuple[int, ...]
) -> Any:
    images = jnp.zeros((1, *image_shape), jnp.uint8)
    return model.init(key, images, train=False)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    axis_name: str | None,
    accumulate: int = 1,
    solvers: int = 1,
    label_smoothing: float = 0.0,
    layer_stats: Callable[[Any, Any], Any] = lars_optax.layer_stats,
    platform: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update, and the metrics of its batch.

    The update follows the gradient of the mean loss over the whole batch. Each device
    cuts its share into `accumulate` × `solvers` equal parts, called slots: `accumulate`
    groups in turn, of `solvers` slots at a time. A slot has its own BatchNorm
    statistics, and a dropout key that depends on its number among the slots of all
    devices. Where and when it is computed changes rounding errors only. On `platform`
    "cpu" the groups are unrolled, and on others they are a loop. On "gpu" the gradients
    are put in the memory layout of the parameters. None is JAX's default platform.

    If the loss, a gradient or a trust ratio is not finite, `finite` becomes False and
    the rest of the state stays unchanged, in this update and in all later ones.

    The metrics are the scalars "loss", "accuracy" and "finite", which is whether the
    state was updated, and "layers": `LayerStats` of vectors over the parameters. If the
    state has a noise scale, "noise" and "signal" are the estimates of this update, and
    "noise_scale" is the ratio of their moving averages. The small batch of an estimate
    is one group of slots, and the large batch is the whole one.
    """
    platform = platform or jax.default_backend()
    slots = accumulate * solvers
    here = 0 if axis_name is None else slots * jax.lax.axis_index(axis_name)
    keys = _slot_keys(state, here + jnp.arange(slots))
    cut = jax.tree.map(
        lambda x: x.reshape(accumulate, solvers, x.shape[0] // slots, *x.shape[1:]),
        (batch.images, batch.labels, batch.mirror),
    )
    loss_fn = partial(_loss, model, label_smoothing, state.batch_stats)

    def gradient(xs: tuple[Array, ...]) -> tuple[Any, ...]:
        def mean_loss(params: optax.Params) -> tuple[Array, Any]:
            over_slots = jax.vmap(partial(loss_fn, params), axis_name=SOLVERS)
            losses, aux = over_slots(xs)
            return losses.mean(), jax.tree.map(lambda x: x.mean(0), aux)

        (loss, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        wanted = state.noise_scale is not None
        square = optax.tree.norm(grads, squared=True) if wanted else None
        return loss, (*aux, square), grads

    keys = keys.reshape(accumulate, solvers, *keys.shape[1:])
    mean = _mean_in_turn(gradient, (keys, *cut), accumulate, platform)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    loss, (accuracy, moments, small_square), grads = mean
    if platform == "gpu":
        grads = jax.tree.map(_row_major, grads)
    layers = _stack(layer_stats(grads, state.params))
    metrics = {"loss": loss, "accuracy": accuracy, "layers": layers}
    noise_scale = None
    if state.noise_scale is not None:
        n = 1 if axis_name is None else jax.lax.psum(1, axis_name)
        images = len(batch.labels)
        big_square = jnp.sum(layers.grad_norm**2)
        found = lars_optax.gradient_noise_scale(
            small_square, big_square, images // accumulate, images * n
        )
        noise_scale = found.moving_average(state.noise_scale)
        metrics |= {"noise": found.noise, "signal": found.signal}
        metrics |= {"noise_scale": noise_scale.scale}
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=age(state.batch_stats, from_moments(moments), state.step == 0),
        opt_state=opt_state,
        noise_scale=noise_scale,
    )
    # `new` itself is not checked, which would take another pass over all parameters.
    # A trust ratio is NaN if the norm of its parameters overflows.
    layers_finite = jnp.isfinite(layers.grad_norm) & jnp.isfinite(layers.trust_ratio)
    finite = jnp.isfinite(loss) & layers_finite.all() & state.finite
    stays = state._replace(finite=finite)
    state = jax.tree.map(partial(jnp.where, finite), new, stays)
    return state, metrics | {"finite": finite}


def _row_major(grad: Array) -> Array:
    """Returns a gradient in the memory layout of its parameter, which is row-major.

    cuDNN writes the gradient of a convolution's weights in another layout. Without this
    constraint XLA copies the weights and the momentum into that layout before the
    update, and back after it.
    """
    return with_layout_constraint(grad, Layout(tuple(range(grad.ndim))))


def _loss(
    model: nn.Module,
    label_smoothing: float,
    batch_stats: Any,
    params: optax.Params,
    slot: tuple[Array, ...],
) -> tuple[Array, Any]:
    """Returns the mean loss of a slot, and its accuracy and BatchNorm moments.

    A slot is a part of a device's batch, given as (key, images, labels, mirror).
    """
    key, images, labels, mirror = slot
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    logits, new = forward(model, params, batch_stats, mirrored(images, mirror), key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        spread = -jax.nn.log_softmax(logits).mean(-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    loss = losses.mean()
    accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return loss, (accuracy, to_moments(new.get("batch_stats", {})))


def forward(
    model: nn.Module, params: Any, batch_stats: Any, images: Array, key: Array
) -> Any:
    """Runs a network in training mode; returns its output and new BatchNorm state.

    `key` is the random key of dropout.
    """
    return model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )


def mirrored(images: Array, mirror: Array) -> Array:
    """Returns images [n, height, width, channels], flipped left to right by `mirror`.

    `mirror` is a bool for each image, or None for no flips.
    """
    if mirror is None:
        return images
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def _slot_keys(state: TrainState, slots: Array) -> Array:
    """Returns the dropout keys, uint32 [slots, 2], of the slots with these numbers.

    A slot is a part of a device's batch.
    """
    key = jax.random.wrap_key_data(state.rng, impl="threefry2x32")
    key = jax.random.fold_in(key, state.step)
    return jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(slots)


def _mean_in_turn(fn: Callable[[Any], Any], xs: Any, n: int, platform: str) -> Any:
    """Applies fn to n slices of integer arrays in turn, and returns the mean.

    On a CPU the slices are unrolled, because XLA's convolutions are ten times slower
    inside a loop there. Elsewhere they are a loop, because n copies of a network take
    long to compile.
    """
    first = jax.tree.map(lambda x: x[0], xs)
    if n == 1:
        return fn(first)
    if platform == "cpu":
        total = fn(first)
        for i in range(1, n):
            total = optax.tree.add(total, fn(_slice_after(total, xs, i)))
    else:
        zeros = optax.tree.zeros_like(jax.eval_shape(fn, first))
        total, _ = jax.lax.scan(
            lambda total, x: (optax.tree.add(total, fn(x)), None), zeros, xs
        )
    return jax.tree.map(lambda x: x / n, total)


def _slice_after(done: Any, xs: Any, i: int) -> Any:
    """Returns slice i of integer arrays, which XLA cannot compute before `done`.

    This keeps XLA from holding all slices in memory at once. The slice depends on
    `done`, a tree of floats, because 0 times one of these floats is added to it. XLA
    ignores `jax.lax.optimization_barrier` here.
    """
    zero = 0.0 * sum(x.ravel()[0] for x in jax.tree.leaves(done))
    return jax.tree.map(lambda x: x[i] + zero.astype(x.dtype), xs)


def _stack(stats: Any) -> lars_optax.LayerStats:
    """Stacks a tree of LayerStats of scalars into one LayerStats of vectors."""
    leaves = jax.tree.leaves(
        stats, is_leaf=lambda x: isinstance(x, lars_optax.LayerStats)
    )
    return lars_optax.LayerStats(*map(jnp.stack, zip(*leaves, strict=True)))


def eval_step(
    state: TrainState, batch: Batch, *, model: nn.Module, axis_name: str | None
) -> dict[str, jax.Array]:
    """Returns sums over the images whose mask is True, on all devices.

    They are the loss, the number of correct and of top-5 correct images, and the count.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: Array = model.apply(variables, batch.images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = best == batch.labels[:, None]
    sums = {
        # Not a product with the mask: the loss of a padded row may be NaN.
        "loss": jnp.where(batch.mask, losses, 0.0).sum(),
        "correct": (batch.mask & hits[:, 0]).sum(),
        "top5": (batch.mask & hits.any(-1)).sum(),
        "count": batch.mask.sum(),
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
