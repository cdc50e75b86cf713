"""LARS in some fifty lines: a small network, batches of 500, ten seconds on a CPU.

    python -m examples.quickstart

Shows what LARS adds to a training script: a table of the parameters that it adapts, the
optimizer, and a table of what it does to each layer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import lars_optax

Params = dict[str, Any]
TRAIN, BATCH, EPOCHS = 1500, 500, 60


def digits() -> tuple[Any, Any]:
    """Returns the 1,797 digits of 8 × 8 pixels in scikit-learn, and their labels."""
    x, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    return x[order].astype(np.float32) / 16, y[order]


def init(key: jax.Array) -> Params:
    """Returns the parameters of three dense layers."""
    keys = jax.random.split(key, 3)
    sizes = [(64, 128), (128, 64), (64, 10)]
    return {
        f"dense{i}": {
            "kernel": jax.random.normal(k, size) * np.sqrt(2 / size[0]),
            "bias": jnp.zeros(size[1]),
        }
        for i, (k, size) in enumerate(zip(keys, sizes, strict=True))
    }


def logits(params: Params, x: jax.Array) -> Any:
    """Returns the network's output, a score for each image and class."""
    for name in ("dense0", "dense1"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["dense2"]["kernel"] + params["dense2"]["bias"]


def loss(params: Params, x: jax.Array, y: jax.Array) -> Any:
    """Returns the mean cross-entropy of the network on images x with labels y."""
    scores = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
    return scores.mean()


def main() -> float:
    """Trains the network and returns its test accuracy, a fraction."""
    x, y = digits()
    params = init(jax.random.key(0))
    print(lars_optax.describe_mask("exclude_bias_and_norm", params))

    steps = EPOCHS * (TRAIN // BATCH)
    rate = lars_optax.warmup_polynomial_decay_schedule(0.0, 10.0, steps // 10, steps)
    tx = lars_optax.lars(rate, weight_decay=5e-4)
    state = tx.init(params)

    @jax.jit
    def step(params: Params, state: optax.OptState, x: jax.Array, y: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        stats = lars_optax.layer_stats(grads, params, 5e-4)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, stats

    for epoch in range(EPOCHS):
        shuffled = np.random.RandomState(epoch).permutation(TRAIN)
        for batch in shuffled.reshape(-1, BATCH):
            params, state, value, stats = step(params, state, x[batch], y[batch])
    print(f"\ntraining loss {value:.4f}; what LARS did to each layer at the last step:")
    print(lars_optax.format_layer_stats(stats))
    accuracy = float((logits(params, x[TRAIN:]).argmax(-1) == y[TRAIN:]).mean())
    print(f"\ntest accuracy after {steps} updates: {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
