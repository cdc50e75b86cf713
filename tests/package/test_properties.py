"""Laws of `scale_by_lars` on random trees: 30 cases of each, drawn from fixed seeds.

Leaves are scalars, empty, small or, one in 16, of 90,000 elements; float16, bfloat16,
float32 and complex64, or, one tree in 4, all float64. Elements are 0 or from 1e-16 (the
joint denominator squares βw, and β ≥ 2⁻¹⁰) to norms of 1e19, with some of 1e-30 and
1e-40, whose squares are 0. Eager, for each shape to compile once. Twenty times as many:

    python -m pytest tests/package/test_properties.py --hypothesis-profile=thorough
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import random_trees as drawn
from compat import enable_x64
from hypothesis import given
from hypothesis import strategies as st
from random_trees import OPTIONS, leaves, norm, reals, same_bits, trees, updates_of
from reference import trust_ratio

import lars_optax


@given(trees(), OPTIONS)
def test_update_in_range_is_finite_where_its_bound_fits_the_dtype(tree, options):
    # Elements of an adapted layer's update are at most η‖w‖ (the test below), the
    # others the fallback times |g| + β|w|: what exceeds a float16's 65504 is infinite.
    updates = updates_of(tree, options)
    for name, leaf in tree.items():
        w, g, _, beta = drawn.in_numbers(leaf, options)
        raw = np.max(abs(g) + beta * abs(w), initial=0.0)
        adapted = options["trust_coefficient"] * norm(w) * leaf.adapted
        bound = max(adapted, options["fallback_ratio"] * raw)
        if bound < drawn.largest(leaf.w.dtype):
            assert np.isfinite(updates[name]).all(), name


@given(trees(), OPTIONS)
def test_adapted_update_is_at_most_eta_times_as_long_as_the_weights(tree, options):
    updates = updates_of(tree, options)
    for name, leaf in tree.items():
        w, _, _, beta = drawn.in_numbers(leaf, options)
        bound = options["trust_coefficient"] * norm(w)
        if drawn.has_ratio(leaf, options) and bound < drawn.largest(leaf.w.dtype):
            length = norm(reals(updates[name]))
            slack = drawn.tolerance(leaf.w) * bound
            slack += np.sqrt(w.size) * drawn.FLOOR.get(leaf.w.dtype.name, 0.0)
            assert length <= bound + slack
            if beta == options["eps"] == 0:
                assert length >= bound - slack


@given(trees(), leaves(shapes=drawn.SHAPES), OPTIONS, st.data())
def test_nonfinite_values_stay_visible_and_in_their_own_leaf(tree, leaf, options, data):
    if drawn.is_x64(tree):
        leaf = data.draw(leaves(x64=True, shapes=drawn.SHAPES))
    # Squares of the last overflow: beyond the range a norm is infinite, not wrong.
    beyond = [1e200 if drawn.is_x64(tree) else 1e25] if leaf.adapted else []
    value = data.draw(st.sampled_from([np.inf, -np.inf, np.nan, *beyond]))
    field = data.draw(st.sampled_from(["w", "g"]))
    poisoned = getattr(leaf, field).copy()
    at = np.unravel_index(data.draw(st.integers(0, leaf.w.size - 1)), leaf.w.shape)
    with np.errstate(over="ignore"):  # 1e25 is infinite in float16
        if np.iscomplexobj(poisoned) and data.draw(st.booleans()):
            value = 1j * value
        poisoned[at] = value
    clean = updates_of({**tree, "sick": leaf}, options)
    updates = updates_of({**tree, "sick": leaf._replace(**{field: poisoned})}, options)

    for name in tree:
        same_bits(updates[name], clean[name])
    got, healthy = updates["sick"], clean["sick"].copy()
    if leaf.adapted:
        assert np.isnan(got).all()  # the whole layer
    elif field == "g" or (leaf.decayed and options["weight_decay"]):
        assert not np.isfinite(got[at])
        got = got.copy()
        got[at] = healthy[at] = 0
        same_bits(got, healthy)
    else:
        same_bits(got, healthy)  # reads no w: only w − update shows it


def containers(inner):
    dicts = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    return st.lists(inner, max_size=3) | dicts | st.tuples(inner, inner)


def is_drawn(x):
    return isinstance(x, drawn.Leaf)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


SINGLE = drawn.wild_leaves().map(lambda pair: drawn.Leaf(*pair, None, None))
NESTED = st.recursive(SINGLE, containers, max_leaves=5)


@given(NESTED, OPTIONS, st.booleans(), st.booleans())
def test_dtypes_shapes_and_structure_are_kept(tree, options, decayed, adapted):
    def field(name):
        named = {"root": tree}
        return jax.tree.map(lambda x: getattr(x, name), named, is_leaf=is_drawn)

    with enable_x64():
        w, g = jax.tree.map(jnp.asarray, (field("w"), field("g")))
        masks = {
            "weight_decay_mask": lambda p: jax.tree.map(lambda _: decayed, p),
            "trust_ratio_mask": lambda p: jax.tree.map(lambda _: adapted, p),
        }
        trained = jax.tree.map(
            lambda g, w: None if g is None else w, g, w, is_leaf=lambda x: x is None
        )
        for make in (lars_optax.scale_by_lars, partial(lars_optax.lars, 0.5)):
            tx = make(**masks, **options)
            state = tx.init(w)
            updates, after = tx.update(g, state, w)
            assert jax.tree.structure(updates) == jax.tree.structure(g)
            assert shapes(updates) == shapes(trained)
            assert jax.tree.structure(after) == jax.tree.structure(state)


@given(trees(shapes=[(), (4,)], kinds=("plain", "zero"), exponents=(-1, 1)), OPTIONS)
def test_derivative_through_a_step_is_finite_at_zero_too(tree, options):
    # Values from 2⁻⁷ to 4: the derivative by g, about λ, then fits a float16.
    *arrays, decayed, adapted = drawn.columns(tree)
    masks = {"weight_decay_mask": decayed, "trust_ratio_mask": adapted}
    tx = lars_optax.scale_by_lars(**masks, **options)

    def total(w, g):
        updates = tx.update(g, tx.init(w), w)[0]
        return sum(jnp.sum(jnp.real(u)).astype(float) for u in updates.values())

    with enable_x64(drawn.is_x64(tree)):
        w, g = jax.tree.map(jnp.asarray, arrays)
        slopes = jax.grad(total, argnums=(0, 1))(w, g)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


RULE = ("trust_coefficient", "eps", "denominator", "fallback_ratio")


@given(trees(), OPTIONS)
def test_equals_the_float64_reference(tree, options):
    updates = updates_of(tree, options)
    eta, eps, kind, fallback = (options[x] for x in RULE)
    for name, leaf in tree.items():
        w, g, step, beta = drawn.in_numbers(leaf, options)
        ratio, condition = fallback, 1.0
        if leaf.adapted:
            ratio = trust_ratio(w, g, eta, beta, eps, kind, fallback)
            if kind == "joint" and norm(step) > 0:
                condition = (norm(g) + beta * norm(w)) / norm(step)
            elif kind == "joint" and norm(w) > 0 and norm(g) > 0:
                condition = np.inf
        # g + βw is rounded before it is squared: where it cancels, so do the digits.
        if drawn.tolerance(leaf.w) * condition > 0.1:
            continue
        error = abs(reals(updates[name]) - ratio * step)
        scale = ratio * np.max(abs(g) + beta * abs(w), initial=0.0) * condition
        floor = drawn.FLOOR.get(leaf.w.dtype.name, 1e-25)
        fits = abs(ratio * step) < drawn.largest(leaf.w.dtype)
        assert (error <= drawn.tolerance(leaf.w) * scale + floor)[fits].all(), name


@given(trees(kinds=("plain", "zero"), exponents=(-30, 30)), OPTIONS,
       st.integers(-10, 10))  # fmt: skip
def test_power_of_two_in_the_gradient_changes_no_bit(tree, options, power):
    options = {**options, "weight_decay": 0.0, "eps": 0.0}
    tree = {  # room for the power: no gradient in half precision
        k: x._replace(g=x.g.astype(np.result_type(x.g.dtype, np.float32)))
        for k, x in tree.items()
    }
    scaled = {k: x._replace(g=x.g * x.g.dtype.type(2.0**power))
              for k, x in tree.items()}  # fmt: skip
    updates, expected = updates_of(scaled, options), updates_of(tree, options)
    for name, leaf in tree.items():
        if drawn.has_ratio(leaf, options):
            same_bits(updates[name], expected[name])


@given(trees(), OPTIONS, st.permutations("abcdef"))
def test_renaming_leaves_renames_updates(tree, options, names):
    new = dict(zip("abcdef", names, strict=True))
    expected = updates_of(tree, options)
    updates = updates_of({new[k]: leaf for k, leaf in tree.items()}, options)
    for name in tree:
        same_bits(updates[new[name]], expected[name])


STACKS = [((3,), 0), ((4, 3), 1), ((2, 3, 2), -2), ((3, 0), 0), ((3, 0), 1)]


@given(st.sampled_from(STACKS), st.data(), OPTIONS)
def test_stacked_layers_equal_their_slices(stack, data, options):
    shape, axis = stack
    leaf = data.draw(leaves(shapes=[shape]))
    alone = data.draw(leaves(shapes=drawn.SHAPES))
    layers = range(shape[axis])
    at = [(*(slice(None),) * (axis % len(shape)), i) for i in layers]
    sick = data.draw(st.sampled_from([None, *layers]))
    for field in ("w", "g"):  # some layers are 0, and one may be infinite
        for i in layers:
            getattr(leaf, field)[at[i]] *= data.draw(st.sampled_from([0, 1, 1]))
    if sick is not None:
        leaf.g[at[sick]] = np.inf
    tree, axes = {"stacked": leaf, "alone": alone}, {"stacked": axis, "alone": None}
    updates = updates_of(tree, options, stacked_axes=axes)
    slices = {str(i): leaf._replace(w=leaf.w[at[i]], g=leaf.g[at[i]]) for i in layers}
    expected = updates_of({**slices, "alone": alone}, options)
    same_bits(updates["alone"], expected["alone"])
    for i in layers:
        got, want = reals(updates["stacked"][at[i]]), reals(expected[str(i)])
        scale = np.max(abs(want), initial=0.0, where=np.isfinite(want))
        most = 2 * drawn.tolerance(leaf.w) * scale
        np.testing.assert_allclose(got, want, rtol=0, atol=most)
