"""Laws of what a layer is: a slice of a stacked leaf, a leaf sharded over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compat import shard_map
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from trees import PARAMS, assert_equal, update

import lars_optax
from lars_optax._layers import resolve_axis_names


@pytest.mark.parametrize("stacked_axes", [0, -1, {"conv": 1, "rest": 0}])
def test_stacked_layers_are_what_they_are_one_by_one(stacked_axes):
    layers = [
        {
            "conv": {"kernel": PARAMS["conv"] * scale},
            "rest": {"bias": PARAMS["conv_bias"]},
        }
        for scale in (0.1, 1.0, 0.0)
    ]
    grads = [jax.tree.map(lambda w, s=s: s * (w + 0.1), layers[1]) for s in (3, 0, 7)]
    axes = {"conv": stacked_axes, "rest": stacked_axes}
    axes = axes if isinstance(stacked_axes, int) else stacked_axes

    def stack(trees):
        def join(key, *x):
            return jax.tree.map(lambda *x: jnp.stack(x, axes[key]), *x)

        return {key: join(key, *(tree[key] for tree in trees)) for key in axes}

    options = {"weight_decay": 0.01, "trust_coefficient": 0.01}
    tx = lars_optax.scale_by_lars(**options, stacked_axes=stacked_axes)
    alone = lars_optax.scale_by_lars(**options)
    expected = stack([update(alone, g, w) for g, w in zip(grads, layers, strict=True)])
    assert_equal(update(tx, stack(grads), stack(layers)), expected, rtol=1e-6)


def test_sharded_parameters_have_the_norms_of_the_whole():
    params = {"full": jnp.arange(1.0, 33.0).reshape(8, 4), "cols": jnp.ones((3, 8)) * 2,
              "replicated": jnp.ones((3, 3)),
              "stack": PARAMS["conv"].reshape(4, 18)}  # fmt: skip
    grads = jax.tree.map(lambda w: jnp.cos(3 * w), params)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    specs = {"full": PartitionSpec(("x", "y")), "cols": PartitionSpec(None, "y"),
             "replicated": PartitionSpec(),
             "stack": PartitionSpec("x", "y")}  # fmt: skip
    axes = {"full": None, "cols": None, "replicated": None, "stack": 0}
    options = {"weight_decay": 0.1, "stacked_axes": axes, "trust_coefficient": 0.01}
    expected = update(lars_optax.scale_by_lars(**options), grads, params)
    tx = lars_optax.scale_by_lars(**options, axis_name=specs)

    def step(grads, params):
        return tx.update(grads, tx.init(params), params)[0]

    sharded = shard_map(step, mesh=mesh, in_specs=(specs, specs), out_specs=specs)
    lowered = jax.jit(sharded).lower(grads, params)
    # One psum for each set of axes: {x, y} for "full", {y} for "cols" and "stack".
    assert len(re.findall("all_reduce", lowered.as_text())) == 2
    assert_equal(lowered.compile()(grads, params), expected, rtol=2e-6)

    # Under jit the sharding is the compiler's: nothing to say.
    plain = lars_optax.scale_by_lars(**options)
    places = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    placed = jax.device_put((grads, params), (places, places))
    jitted = jax.jit(lambda g, w: plain.update(g, plain.init(w), w)[0])
    assert_equal(jitted(*placed), expected, rtol=2e-6)


def test_pmap_over_sharded_parameters_sums_over_its_axis():
    params = {"kernel": jnp.arange(1.0, 25.0).reshape(4, 2, 3)}
    grads = jax.tree.map(jnp.cos, params)
    tx = lars_optax.scale_by_lars(0.1, True, 0.01, 0.0, True, axis_name="d")
    got = jax.pmap(lambda g, w: tx.update(g, tx.init(w), w)[0], axis_name="d")(
        grads, params
    )
    whole = lars_optax.scale_by_lars(0.1, True, 0.01, 0.0, True)
    assert_equal(got, update(whole, grads, params), rtol=2e-6)


def test_a_bare_spec_is_a_spec_and_a_tuple_of_names_is_names():
    params, spec = {"kernel": jnp.ones((4, 4))}, PartitionSpec("x")
    # Each device has its own layers on a sharded stacking axis: nothing to sum.
    assert resolve_axis_names(spec, params, [0]) == [()]
    assert resolve_axis_names(spec, params, [None]) == [("x",)]
    assert resolve_axis_names(("x", "y"), params, [0]) == [("x", "y")]
    pair = (params["kernel"], params["kernel"])
    assert resolve_axis_names((spec, PartitionSpec()), pair, [None] * 2) == [("x",), ()]
