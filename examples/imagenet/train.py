"""One update and one evaluation, as pure functions of state and batch.

The same functions run under `pmap` (axis_name set: the batch is one device's share)
and under `jit` (axis_name None: the batch is the whole one, however it is sharded).
They know no devices, files or clocks.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Array = Any  # of JAX on the devices, of NumPy on the way there
_RUNNING = 0.9  # share of the running BatchNorm moments that outlives a step


class TrainState(NamedTuple):
    step: jax.Array  # int32 []
    params: optax.Params
    batch_stats: Any  # running moments of BatchNorm; {} without it
    opt_state: optax.OptState


class Batch(NamedTuple):
    images: Array  # uint8 [n, height, width, channels]
    labels: Array  # int32 [n]
    mask: Array = None  # bool [n], False = padding; evaluation alone


def init_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
) -> TrainState:
    """The state before the first update; `image_shape` is that of one image."""
    variables = _init_variables(key, model, image_shape)
    params = variables["params"]
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        variables.get("batch_stats", {}),
        tx.init(params),
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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on the mean loss of the whole batch; metrics are of that batch."""

    def loss_fn(params: optax.Params) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = model.apply(
            variables, batch.images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean(), (logits, new.get("batch_stats", {}))

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, stats)), grads = value_and_grad(state.params)
    correct = logits.argmax(-1) == batch.labels
    metrics = {"loss": loss, "accuracy": correct.mean(dtype=jnp.float32)}
    mean = (grads, to_moments(stats), metrics)
    if axis_name is not None:
        mean = jax.lax.pmean(mean, axis_name)
    grads, moments, metrics = mean
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = TrainState(
        state.step + 1,
        optax.apply_updates(state.params, updates),
        jax.tree.map(_age, state.batch_stats, from_moments(moments)),
        opt_state,
    )
    return state, metrics


def _age(running: jax.Array, new: jax.Array) -> jax.Array:
    return _RUNNING * running + (1 - _RUNNING) * new


def to_moments(stats: Any) -> Any:
    """(mean, var) of every BatchNorm to (E x, E x²), which average over equal shares.

    The mean of variances is not the variance: it lacks the spread of the means.
    """
    return jax.tree.map(
        lambda s: {"mean": s["mean"], "square": s["var"] + s["mean"] ** 2},
        stats,
        is_leaf=lambda s: "var" in s,
    )


def from_moments(moments: Any) -> Any:
    """(E x, E x²) back to (mean, var)."""

    def split(m: dict[str, Array]) -> dict[str, Array]:
        # Rounding can leave a constant channel's difference just below zero.
        var = jnp.maximum(m["square"] - m["mean"] ** 2, 0.0)
        return {"mean": m["mean"], "var": var}

    return jax.tree.map(split, moments, is_leaf=lambda m: "square" in m)


def eval_step(
    state: TrainState, batch: Batch, *, model: nn.Module, axis_name: str | None
) -> dict[str, jax.Array]:
    """Sums over the batch's unmasked images: loss, correct, count."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: Array = model.apply(variables, batch.images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    correct = logits.argmax(-1) == batch.labels
    sums = {
        # `where`, not a product: a padded row's loss may be NaN.
        "loss": jnp.where(batch.mask, losses, 0.0).sum(),
        "correct": (batch.mask & correct).sum(),
        "count": batch.mask.sum(),
    }
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
