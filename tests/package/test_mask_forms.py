"""Laws of masks of every form: by path, as trees, in print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from mask_nets import NnxNet, linen_params, paths
from trees import assert_equal, assert_refused, update

import lars_optax


@pytest.mark.parametrize("count", [3, np.int32(3), jnp.asarray(3)])
def test_masks_refuse_a_step_count(count):
    for mask in (lars_optax.exclude_bias_and_norm, lars_optax.match_paths("x")):
        assert_refused(r"step count.*static_args", mask, count)


W = jnp.ones((2, 2))
PARAMS = {"stem": {"kernel": W}, "head": {"kernel": W, "bias": jnp.ones(2)}}


def selected(*patterns, params=PARAMS, **options):
    return paths(lars_optax.match_paths(*patterns, **options)(params), True)


def test_match_paths_searches_joined_paths():
    assert selected("kernel") == {"stem/kernel", "head/kernel"}
    assert selected("^head/") == {"head/kernel", "head/bias"}
    assert selected("stem", "bias$") == {"stem/kernel", "head/bias"}
    assert selected("^head/", invert=True) == {"stem/kernel"}
    assert selected("head/kernel|bias") == {"head/kernel", "head/bias"}


def test_match_paths_sees_nnx_paths_without_value():
    state = nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param)
    assert selected("^conv/kernel$", params=state) == {"conv/kernel"}


def test_match_paths_refuses_what_matches_nothing():
    assert_refused(r"'kernal'.*'stem/kernel'", selected, "stem", "kernal")
    assert_refused("regular expression", lars_optax.match_paths, "(")
    assert_refused("at least one", lars_optax.match_paths)
    assert_refused("strings", lars_optax.match_paths, 3)


def test_masks_of_every_form_select_alike():
    mask = {"stem": True, "head": {"kernel": False, "bias": True}}
    forms = [
        mask,
        jax.tree.map(np.bool_, mask),
        {"stem": {"kernel": True}, "head": {"kernel": False, "bias": True}},
        lambda _: mask,
        lars_optax.match_paths("head/kernel", invert=True),
    ]
    tables = {lars_optax.describe_mask(form, PARAMS) for form in forms}
    assert len(tables) == 1
    rules = [lars_optax.scale_by_lars(0.1, form, 0.01, 0.0, form) for form in forms]
    first, *others = (update(tx, PARAMS, PARAMS) for tx in rules)
    for other in others:
        assert_equal(other, first)


def test_describe_mask_prints_every_leaf_and_totals():
    table = lars_optax.describe_mask("exclude_bias_and_norm", PARAMS)
    assert table.splitlines() == [
        "head/bias    (2,)    no",
        "head/kernel  (2, 2)  yes",
        "stem/kernel  (2, 2)  yes",
        "2 of 3 leaves, 8 of 10 parameters",
    ]
    everything = lars_optax.describe_mask(True, linen_params())
    assert " no" not in everything


def test_describe_mask_knows_stacked_axes():
    params = {"v": jnp.ones((3, 4)), "m": jnp.ones((3, 4, 4))}
    table = lars_optax.describe_mask("exclude_bias_and_norm", params, stacked_axes=0)
    assert [line.split()[-1] for line in table.splitlines()[:2]] == ["yes", "no"]


def test_prefix_may_cover_a_subtree_without_leaves():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "empty": {}}
    table = lars_optax.describe_mask({"a": True, "empty": False}, params)
    assert "1 of 1 leaves" in table


@pytest.mark.parametrize("axis_name", ["m", {"layer_scale": P(None, None, "m")}])
def test_the_printed_mask_is_that_of_the_optimizer_with_its_axis_name(axis_name):
    params = {"layer_scale": jnp.ones((1, 1, 32))}
    mask = "exclude_bias_and_norm"
    table = lars_optax.describe_mask(mask, params, axis_name=axis_name)
    # With a name alone any axis may be the sharded one.
    assert table.splitlines()[-1].startswith("1 of 1" if axis_name == "m" else "0 of 1")
