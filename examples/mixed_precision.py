"""Why half-precision training keeps float32 weights: one network trained in three ways.

    python -m examples.mixed_precision

The bfloat16 number after 1 is 1.008. Weights in bfloat16 therefore stop moving when an
update is much smaller than they are, as LARS's updates become when the learning rate
falls. Weights in float32 that are cast inside the loss, called master weights, go on
moving. The optimizer needs no option for this: it takes norms in float32 in any case,
and gradients and updates have the dtype of the weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lars_optax
from examples.quickstart import TRAIN, Params, digits, init, logits, loss

BATCH, EPOCHS = 100, 20
STEPS = EPOCHS * TRAIN // BATCH


class Result(NamedTuple):
    """The loss and accuracy after training, and how many weights each step changed."""

    loss: float  # on the training images, computed in float32
    accuracy: float  # on the test images, a fraction
    moved: Any  # [steps], the fraction of the weights that each step changed


def cast(tree: Any, dtype: str) -> Any:
    """Returns the tree with all its arrays converted to a dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def train(weights: str, compute: str) -> Result:
    """Trains with weights of dtype `weights` and layers that compute in `compute`."""
    x, y = map(jnp.asarray, digits())
    params = cast(init(jax.random.key(0)), weights)  # called master weights if float32
    rate = lars_optax.warmup_polynomial_decay_schedule(0.0, 2.0, STEPS // 10, STEPS)
    tx = lars_optax.lars(rate, weight_decay=5e-4)
    state = tx.init(params)

    def half_loss(params: Params, x: jax.Array, y: jax.Array) -> Any:
        # The derivative of a cast converts the gradient back to the weights' dtype.
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
    """Trains in the three ways, prints a table, and returns the results."""
    tenth, results = STEPS // 10, {}
    print("moved: share of the weights that one step changes, in a tenth of the run")
    print("weights   compute    loss  accuracy  moved in the 2nd tenth  5th  last")
    ways = [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
    for way in ways:
        result = results[way] = train(*way)
        shares = [np.mean(result.moved[n * tenth :][:tenth]) for n in (1, 4, 9)]
        row = "{:9} {:9} {:.4f} {:9.1%} {:22.0%} {:4.0%} {:5.1%}"
        print(row.format(*way, *result[:2], *shares))
    return results


if __name__ == "__main__":
    main()
