"""Reads the recordings of published implementations and runs optimizers beside them.

`tests/package/vectors/make_vectors.py` made the recordings and describes the files.
"""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from compat import enable_x64
from trees import train_step

VECTORS = Path(__file__).parents[1] / "package" / "vectors"
IDLE = "idle/kernel"  # its gradient is zero at some steps


@cache
def arrays(name):
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def read(name, prefix):
    """The arrays whose key starts with `prefix`, by the rest of the key."""
    found = arrays(name).items()
    return {k.removeprefix(prefix): x for k, x in found if k.startswith(prefix)}


def about(name):
    """The source of one file, its versions and its configurations."""
    return json.loads(str(arrays(name)["about"]))


def recorded(name, configuration):
    """Each leaf after every step, and the arguments of the implementation."""
    leaves = read(name, f"{configuration}:")
    leaves.pop("learning_rates", None)
    return leaves, about(name)["configurations"][configuration]


def recorded_rates(name, configuration):
    """The learning rates of the source's schedule, by default those of `inputs.npz`."""
    own = read(name, f"{configuration}:").get("learning_rates")
    return arrays("inputs")["learning_rates"] if own is None else own


def as_schedule(rates):
    return lambda count: jnp.asarray(rates)[count]


def rate(scale=1.0):
    """The learning rates of `inputs.npz` as a schedule."""
    return as_schedule(scale * arrays("inputs")["learning_rates"])


def replay(make_optimizer):
    """Each leaf after every step of the optimizer with the recorded gradients."""
    with enable_x64(True):
        optimizer = make_optimizer()
        params = jax.tree.map(jnp.asarray, read("inputs", "params:"))
        grads = read("inputs", "grads:")
        update = train_step(optimizer)

        def step(carry, grads):
            params, state = carry
            params, state = update(grads, state, params)
            return (params, state), params

        scan = jax.jit(partial(jax.lax.scan, step))
        history = jax.device_get(scan((params, optimizer.init(params)), grads)[1])
    assert all(leaf.dtype == np.float64 for leaf in history.values())
    return history


def errors(ours, theirs):
    """The largest relative difference of each leaf at any step.

    The difference at a step is divided by the leaf's largest value at that step.
    """

    def error(a, b):
        axes = tuple(range(1, b.ndim))
        differences, largest = np.max(np.abs(a - b), axes), np.max(np.abs(b), axes)
        # Leave out steps without a difference: if the first learning rate is zero, a
        # leaf that starts at zero is still zero after it, and 0/0 is nan.
        differs = differences > 0
        return np.max(differences[differs] / largest[differs], initial=0.0)

    assert ours.keys() == theirs.keys()
    return {leaf: float(error(ours[leaf], theirs[leaf])) for leaf in theirs}
