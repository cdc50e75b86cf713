"""Why half-precision training keeps float32 weights: three ways, one network.

    python -m examples.mixed_precision

bfloat16's next number after 1 is 1.008, so weights kept in it stand still when a step
is a smaller share of them, as LARS's are when the learning rate falls. Weights kept in
float32 and cast inside the loss (master weights) do not. The optimizer needs no option:
norms are float32 in each case, and gradients and updates have the weights' dtype.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lars_optax
from examples.quickstart import Params, init, logits, loss

TRAIN, BATCH, EPOCHS = 1500, 100, 20
STEPS = EPOCHS * TRAIN // BATCH


class Result(NamedTuple):
    loss: float  # on the training images, in float32
    accuracy: float  # on the others
    moved: Any  # share of the weights that each step changed


def cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def train(weights: str, compute: str) -> Result:
    x, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])

    params = cast(init(jax.random.key(0)), weights)  # master weights, if float32
    rate = lars_optax.warmup_polynomial_decay_schedule(0.0, 2.0, STEPS // 10, STEPS)
    tx = lars_optax.lars(rate, weight_decay=5e-4)
    state = tx.init(params)

    def half_loss(params: Params, x: jax.Array, y: jax.Array) -> Any:
        # The derivative of a cast casts back, to the weights' dtype.
        return loss(cast(params, compute), x.astype(compute), y)

    def step(carry: tuple[Params, optax.OptState], batch: jax.Array) -> Any:
        params, state = carry
        grads = jax.grad(half_loss)(params, x[batch], y[batch])
        updates, state = tx.update(grads, state, params)
        new = optax.apply_updates(params, updates)
        changed = jax.tree.map(lambda a, b: jnp.sum(a != b), params, new)
        return (new, state), optax.tree.sum(changed) / optax.tree.size(params)

    random = np.random.RandomState(0)
    epochs = [random.permutation(TRAIN).reshape(-1, BATCH) for _ in range(EPOCHS)]
    (params, state), moved = jax.jit(lambda carry, batches: jax.lax.scan(
        step, carry, batches
    ))((params, state), np.concatenate(epochs))  # fmt: skip
    wide = cast(params, "float32")
    right = logits(wide, x[TRAIN:]).argmax(-1) == y[TRAIN:]
    return Result(float(loss(wide, x[:TRAIN], y[:TRAIN])), float(right.mean()), moved)


def main() -> dict[tuple[str, str], Result]:
    """Train in the three ways and print what came of each."""
    tenth, results = STEPS // 10, {}
    print("weights   compute    loss  accuracy  moved by a step: 2nd tenth  5th  last")
    ways = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
    for way in ways:
        result = results[way] = train(*way)
        shares = [np.mean(result.moved[n * tenth :][:tenth]) for n in (1, 4, 9)]
        row = "{:9} {:9} {:.4f} {:9.1%} {:26.0%} {:4.0%} {:5.1%}"
        print(row.format(*way, *result[:2], *shares))
    return results


if __name__ == "__main__":
    main()
