"""Trains two small dense networks on scikit-learn's digits, with full-batch gradients.

    python -m benchmarks.study.dense

The networks have three dense layers of 128, 128 and 10 units, without normalisation and
with LayerNorm after the first two. Each is trained for 80 updates of 1,400 images, with
weight decay β = 5e-4 and momentum μ = 0.9. The learning rate grows linearly from 0 over
a sixth of the updates and then falls as (1 − t/T)², where t is the number of updates
done and T = 80. A seed sets the initial weights and which of the 1,797 images are held
out. The accuracy is that on the 397 held-out images. Writes
benchmarks/results/dense.jsonl anew, a line for each run.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from sklearn.datasets import load_digits

import lars_optax
from benchmarks.results import RESULTS, append
from examples.imagenet.provenance import provenance

FILE = "dense.jsonl"
NETWORKS = {"dense": "dense, without normalisation", "dense-ln": "dense, LayerNorm"}
RATES = (10.0, 20.0, 40.0, 80.0)
SEEDS = range(8)
UPDATES, TRAINED = 80, 1400
SIZES = ((64, 128), (128, 128), (128, 10))


def lars_with(ratio: float, **options: Any) -> Callable[[Any], Any]:
    """Returns a function from a schedule to LARS whose `fallback_ratio` is `ratio`."""
    return lambda rate: lars_optax.lars(rate, 5e-4, fallback_ratio=ratio, **options)


ALL = {"weight_decay_mask": True, "trust_ratio_mask": True}
OPTIMIZERS = {
    **{f"{r:g}": lars_with(r) for r in (1, 0.3, 0.1, 0.02, 0.005, 0.001, 0.0002)},
    "all leaves": lars_with(0.02, **ALL),
    "optax.lars": lambda rate: optax.lars(rate, 5e-4),
}


def init(key: jax.Array, norm: bool) -> Any:
    """Returns initial parameters: weights as in He et al. 2015, and biases of zero."""
    params = {}
    keys = jax.random.split(key, len(SIZES))
    for i, (size, each) in enumerate(zip(SIZES, keys, strict=True)):
        kernel = jax.random.normal(each, size) * np.sqrt(2 / size[0])
        params[f"dense{i}"] = {"kernel": kernel, "bias": jnp.zeros(size[1])}
        if norm and i < len(SIZES) - 1:
            scale = jnp.ones(size[1])
            params[f"norm{i}"] = {"scale": scale, "bias": jnp.zeros(size[1])}
    return params


def apply(params: Any, x: jax.Array) -> jax.Array:
    """Returns the logits of images with pixels between 0 and 1."""
    for i in range(len(SIZES)):
        x = x @ params[f"dense{i}"]["kernel"] + params[f"dense{i}"]["bias"]
        if f"norm{i}" in params:
            scale, offset = params[f"norm{i}"]["scale"], params[f"norm{i}"]["bias"]
            x = jax.nn.standardize(x, epsilon=1e-5) * scale + offset
        if i < len(SIZES) - 1:
            x = jax.nn.relu(x)
    return x


def accuracies(network: str, make: Callable[[Any], Any], rate: float) -> np.ndarray:
    """Trains a network once for each seed, and returns its held-out accuracies.

    `make` returns the optimizer for a learning-rate schedule. `rate` is its peak.
    """
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    schedule = lars_optax.warmup_polynomial_decay_schedule
    tx = make(schedule(0.0, rate, UPDATES // 6, UPDATES))

    def train(seed: jax.Array) -> jax.Array:
        key, split = jax.random.split(jax.random.key(seed))
        order = jax.random.permutation(split, len(x))
        mine, held_out = order[:TRAINED], order[TRAINED:]

        def loss(params: Any) -> jax.Array:
            losses = optax.softmax_cross_entropy_with_integer_labels
            return jnp.mean(losses(apply(params, x[mine]), y[mine]))

        def update(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = init(key, network == "dense-ln")
        (params, _), _ = jax.lax.scan(update, (params, tx.init(params)), length=UPDATES)
        return jnp.mean(apply(params, x[held_out]).argmax(1) == y[held_out])

    return np.asarray(jax.jit(jax.vmap(train))(jnp.arange(len(SEEDS))))


def main() -> None:
    about = provenance()
    (RESULTS / FILE).unlink(missing_ok=True)
    for network, (name, make), rate in product(NETWORKS, OPTIMIZERS.items(), RATES):
        key = {"network": network, "optimizer": name, "learning_rate": rate}
        found = accuracies(network, make, rate)
        for seed, accuracy in zip(SEEDS, found.tolist(), strict=True):
            append(FILE, key | {"seed": seed, "accuracy": accuracy} | about)
        mean, spread = found.mean(), found.std(ddof=1)
        print(f"{network}, {name}, {rate:g}: {mean:.1%} ± {spread:.1%}", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
