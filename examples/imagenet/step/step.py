"""One update and one evaluation, as pure functions of state and batch.

The same functions run under `pmap` and `shard_map` (axis_name set: the batch is one
device's share) and under `jit` (axis_name None: the batch is the whole one, however it
is sharded). They know no devices, files or clocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import lars_optax

from ..data.dataset import Array, Batch
from .moments import age, from_moments, to_moments

SOLVERS = "solvers"  # the axis of slots side by side


class TrainState(NamedTuple):
    step: jax.Array  # int32 []
    rng: jax.Array  # uint32 [2], a key that never changes; steps and slots fold in
    params: optax.Params
    batch_stats: Any  # running moments of BatchNorm; {} without it
    opt_state: optax.OptState
    finite: jax.Array  # bool [], False from the first update on that was not


def init_state(
    seed: int,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first update; `image_shape` is that of one image."""
    # XLA takes twelve seconds to compile the default generator on a CPU.
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
    )


# Apart from the optimizer's state, so that one compilation serves every optimizer.
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
    platform: str = "cpu",
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on the mean loss of the whole batch; metrics are of that batch.

    The batch is cut into `accumulate` × `solvers` slots of equal size, worked through
    in turn and side by side. A slot has BatchNorm moments of its own, and a dropout
    key from its place among all slots of all devices: on which device, and when, it is
    computed changes nothing but roundings. Norms are taken on the mean gradient. On the
    `platform` "cpu" the slots in turn are unrolled; on others they are a loop.

    A loss or a gradient that is not finite leaves the state as it was but for its
    `finite`, and so does every update after it.

    Metrics: "loss", "accuracy" []; "layers", a `LayerStats` of vectors, one value for
    each leaf of the parameters in their order; "finite" [], whether it was an update.
    """
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
            losses, aux = over_slots(*xs)
            return losses.mean(), jax.tree.map(lambda x: x.mean(0), aux)

        (loss, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        return loss, aux, grads

    keys = keys.reshape(accumulate, solvers, *keys.shape[1:])
    mean = _mean_in_turn(gradient, (keys, *cut), accumulate, platform)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    loss, (accuracy, moments), grads = mean

    layers = _stack(layer_stats(grads, state.params))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = TrainState(
        state.step + 1,
        state.rng,
        optax.apply_updates(state.params, updates),
        age(state.batch_stats, from_moments(moments), state.step == 0),
        opt_state,
        state.finite,
    )
    # Not of `new`: that would take another pass over all of it.
    finite = jnp.isfinite(loss) & jnp.isfinite(layers.grad_norm).all() & state.finite
    stays = state._replace(finite=finite)
    state = jax.tree.map(partial(jnp.where, finite), new, stays)
    metrics = {"loss": loss, "accuracy": accuracy, "layers": layers, "finite": finite}
    return state, metrics


def _loss(
    model: nn.Module,
    label_smoothing: float,
    batch_stats: Any,
    params: optax.Params,
    key: Array,
    images: Array,
    labels: Array,
    mirror: Array,
) -> tuple[Array, Any]:
    """One slot's mean loss, and (accuracy, moments of its BatchNorms)."""
    logits, new = model.apply(
        {"params": params, "batch_stats": batch_stats},
        mirrored(images, mirror),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.wrap_key_data(key, impl="threefry2x32")},
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        spread = -jax.nn.log_softmax(logits).mean(-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    loss = losses.mean()
    accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
    return loss, (accuracy, to_moments(new.get("batch_stats", {})))


def mirrored(images: Array, mirror: Array) -> Array:
    """[n, height, width, channels], with those images turned whose mirror is True."""
    if mirror is None:
        return images
    return jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)


def _slot_keys(state: TrainState, slots: Array) -> Array:
    """uint32 [slots, 2]: a key for each slot of this step, the same on any device."""
    key = jax.random.wrap_key_data(state.rng, impl="threefry2x32")
    key = jax.random.fold_in(key, state.step)
    return jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(slots)


def _mean_in_turn(fn: Callable[[Any], Any], xs: Any, n: int, platform: str) -> Any:
    """The mean of fn over the n leading slices of integer arrays, one after the other.

    XLA's convolutions are ten times slower inside a loop on a CPU, so there the slices
    are unrolled; elsewhere they are not, as n copies of a network take long to compile.
    """
    if n == 1:
        return fn(_slice(xs, 0))
    total = (_sum_unrolled if platform == "cpu" else _sum_scanned)(fn, xs, n)
    return jax.tree.map(lambda x: x / n, total)


def _sum_unrolled(fn: Callable[[Any], Any], xs: Any, n: int) -> Any:
    """Each slice after the one before, which XLA would else hold in memory at once."""
    total = fn(_slice(xs, 0))
    for i in range(1, n):
        total = _add(total, fn(_slice_after(total, xs, i)))
    return total


def _sum_scanned(fn: Callable[[Any], Any], xs: Any, n: int) -> Any:
    shapes = jax.eval_shape(fn, _slice(xs, 0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda total, x: (_add(total, fn(x)), None), zeros, xs)
    return total


def _slice_after(done: Any, xs: Any, i: int) -> Any:
    """Slice i of integers, made to need what is done: 0 times its floats is added.

    XLA drops a barrier before it orders its operations, but not a sum.
    """
    zero = 0.0 * sum(x.ravel()[0] for x in jax.tree.leaves(done))
    return jax.tree.map(lambda x: x[i] + zero.astype(x.dtype), xs)


def _slice(xs: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], xs)


def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, total, more)


def _stack(stats: Any) -> lars_optax.LayerStats:
    """A tree of LayerStats to one LayerStats of vectors over its leaves."""
    leaves = jax.tree.leaves(
        stats, is_leaf=lambda x: isinstance(x, lars_optax.LayerStats)
    )
    stacked: lars_optax.LayerStats = jax.tree.map(lambda *x: jnp.stack(x), *leaves)
    return stacked


def eval_step(
    state: TrainState, batch: Batch, *, model: nn.Module, axis_name: str | None
) -> dict[str, jax.Array]:
    """Sums over the batch's unmasked images: loss, correct, top-5 correct, count."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: Array = model.apply(variables, batch.images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    hits = best == batch.labels[:, None]
    sums = {
        # `where`, not a product: a padded row's loss may be NaN.
        "loss": jnp.where(batch.mask, losses, 0.0).sum(),
        "correct": (batch.mask & hits[:, 0]).sum(),
        "top5": (batch.mask & hits.any(-1)).sum(),
        "count": batch.mask.sum(),
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
