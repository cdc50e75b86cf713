"""Laws of dtypes: half precision, double, complex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compat import enable_x64
from trees import GRADS, PARAMS, assert_equal, each_step, train_step, update

import lars_optax

pytestmark = pytest.mark.usefixtures("for_gpu")


def cast(dtype):
    return jax.tree.map(lambda x: x.astype(dtype), (PARAMS, GRADS))


def shapes(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def dtypes(tree):
    return {x.dtype.name for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64"]
)
def test_updates_keep_their_parameters_dtype_under_strict_promotion(dtype, strict):
    options = {"weight_decay_mask": True, "trust_ratio_mask": True}
    with enable_x64(dtype == "float64"):
        params, grads = cast(dtype)
        for accumulator in (None, "float32"):
            if accumulator and dtype in ("float64", "complex64"):
                continue  # a buffer narrower than its parameter
            tx = lars_optax.lars(0.5, 0.01, **options, accumulator_dtype=accumulator)
            state = tx.init(params)
            with jax.numpy_dtype_promotion("standard" if accumulator else "strict"):
                updates, after = tx.update(grads, state, params)
            assert dtypes(updates) == {dtype}
            assert shapes(after) == shapes(state)


@pytest.mark.parametrize("argument", ["learning_rate", "momentum"])
@pytest.mark.parametrize("kind", [float, np.float32, np.float64, jnp.float32])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_no_scalar_widens_the_updates_or_the_buffer(argument, kind, dtype):
    with enable_x64(kind is np.float64 or dtype == "float64"):
        params, grads = cast(dtype)
        tx = lars_optax.lars(**{"learning_rate": 0.5, argument: kind(0.5)})
        start = tx.init(params)
        for updates, state in each_step(tx, [grads] * 2, params):
            assert dtypes(updates) == {dtype}
            assert shapes(state) == shapes(start)


def test_float32_buffer_takes_unrounded_steps():
    # Steps of 1e-8 vanish in float16 before they are summed, but not in float32.
    w = jnp.ones((4, 4), jnp.float16)
    tx = lars_optax.lars(1e3, trust_coefficient=1e-8, accumulator_dtype="float32")
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_allclose(updates, -1e-5 * w, rtol=0.01)
    assert dtypes(state) == {"float32"}


@pytest.mark.parametrize("make", [lars_optax.lars, lars_optax.larc])
def test_accumulator_dtype_is_that_of_the_buffer_alone(make):
    def steps(**options):
        return update(make(0.5, weight_decay=0.01, **options))

    expected = steps()
    for options in ({"momentum": None}, {"momentum": 0.9}):  # the first step is exact
        assert_equal(steps(accumulator_dtype="bfloat16", **options), expected)


@pytest.mark.parametrize("value", [1.0, 1e-4])
def test_half_precision_norms_neither_overflow_nor_vanish(value):
    # In float16 ‖ones(512, 512)‖² = 262144 overflows and (1e-4)² = 1e-8 vanishes.
    w = jnp.full((512, 512), value, jnp.float16)
    tx = lars_optax.scale_by_lars(0.0, True, 1.0, 0.0, True)
    # float16's rounding: 1e-3
    np.testing.assert_allclose(update(tx, w, 0.5 * w), 0.5 * w, rtol=2e-3)


@pytest.fixture
def optimized():
    """Programs as users compile them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="its XLA keeps a wide copy")
@pytest.mark.parametrize("for_gpu", [False], indirect=True)
def test_a_step_in_bfloat16_keeps_no_wide_copy_in_memory(optimized):
    w = jnp.ones((256, 256), jnp.bfloat16)
    tx = lars_optax.lars(0.5, 0.01)

    def step(w, state, g):
        return train_step(tx)(g, state, w)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(w, tx.init(w), w).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < w.nbytes


def test_complex_norms_count_both_parts():
    w, g = jnp.asarray([3.0 + 4.0j]), jnp.asarray([1.0j])
    tx = lars_optax.scale_by_lars(0.0, True, 1.0, 0.0, True)
    np.testing.assert_allclose(update(tx, g, w), [5.0j], rtol=1e-6)
