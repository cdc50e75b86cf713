"""Laws of what a layer is: a slice of a stacked leaf, pieces of a sharded one."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from trees import PARAMS, assert_equal, update

import lars_optax
from lars_optax._axes import resolve_axis_names


@pytest.mark.parametrize("stacked_axes", [0, -1, {"conv": 1, "rest": 0}])
def test_stacked_layers_are_what_they_are_one_by_one(stacked_axes):
    rest = {"bias": PARAMS["conv_bias"]}
    layers = [{"conv": {"kernel": PARAMS["conv"] * scale}, "rest": rest}
              for scale in (0.1, 1.0, 0.0)]  # fmt: skip
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


def test_a_bare_spec_is_a_spec_and_a_tuple_of_names_is_names():
    params, spec = {"kernel": jnp.ones((4, 4))}, PartitionSpec("x")
    # Each device has its own layers on a sharded stacking axis: nothing to sum.
    assert resolve_axis_names(spec, params, [0]) == [((), ("x",))]
    assert resolve_axis_names(spec, params, [None]) == [(("x",), ())]
    assert resolve_axis_names(("x", "y"), params, [0]) == [(("x", "y"), ())]
    pair = (params["kernel"], params["kernel"])
    for specs in ((spec, PartitionSpec()), [spec, PartitionSpec()]):
        names = resolve_axis_names(specs, type(specs)(pair), [None] * 2)
        assert names == [(("x",), ()), ((), ())]
