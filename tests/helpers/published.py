"""Published implementations: what was recorded of them, and our optimizers replayed.

`tests/package/vectors/make_vectors.py` recorded them, and says what the files hold.
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
IDLE = "idle/kernel"  # its gradient is zero at steps 7, 8 and 16


@cache
def arrays(name):
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def read(name, prefix):
    """The arrays of one file whose key starts with `prefix`, without it."""
    found = arrays(name).items()
    return {k.removeprefix(prefix): x for k, x in found if k.startswith(prefix)}


def about(name):
    """The source of one file, its versions and its configurations."""
    return json.loads(str(arrays(name)["about"]))


def recorded(name, configuration):
    """Each leaf after every step, and the arguments the implementation was given."""
    leaves = read(name, f"{configuration}:")
    leaves.pop("learning_rates", None)
    return leaves, about(name)["configurations"][configuration]


def recorded_rates(name, configuration):
    """The source's own learning rates; those of `inputs.npz` if it has no schedule."""
    own = read(name, f"{configuration}:").get("learning_rates")
    return arrays("inputs")["learning_rates"] if own is None else own


def as_schedule(rates):
    return lambda count: jnp.asarray(rates)[count]


def rate(scale=1.0):
    """The learning rates of `inputs.npz` as a schedule."""
    return as_schedule(scale * arrays("inputs")["learning_rates"])


def replay(make_optimizer):
    """Each leaf after every step of the optimizer, from the recorded gradients."""
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
    """Per leaf, the greatest difference at any step over that step's largest value."""

    def error(a, b):
        axes = tuple(range(1, b.ndim))
        differences, largest = np.max(np.abs(a - b), axes), np.max(np.abs(b), axes)
        # A leaf that starts at zero stays there in a first step with a rate of zero.
        differs = differences > 0
        return np.max(differences[differs] / largest[differs], initial=0.0)

    assert ours.keys() == theirs.keys()
    return {leaf: float(error(ours[leaf], theirs[leaf])) for leaf in theirs}
