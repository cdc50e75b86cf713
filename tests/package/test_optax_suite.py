"""What Optax asks of its own `lars`, asked of ours with both masks True.

The first test runs Optax's test files themselves, every case that names lars, with
ours in its place. They come with Optax's wheel but need scikit-learn; OPTAX_TESTS may
name a folder with another copy of Optax, for example an unpacked source distribution.
By hand, with each case shown:

    PYTHONPATH=.:tests/helpers python tests/package/test_optax_suite.py

The others state the same laws in our own words, and need nothing.
"""

import importlib
import inspect
import os
import subprocess
import sys
import unittest
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compat import enable_x64

import lars_optax

REPOSITORY = Path(__file__).parents[2]
UNAVAILABLE = 77  # exit status: what could be run passed, but not all could be run
HALF, FULL = ("bfloat16", "float16"), ("float32", "float64", "complex64", "complex128")
OPTAX_SIGNATURE = inspect.signature(optax.lars)  # both masks are True by default


def lars(*args, **kwargs):
    """`lars_optax.lars` called by position, with the signature of `optax.lars`."""
    lars.calls += 1
    bound = OPTAX_SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return lars_optax.lars(*bound.args)


lars.__signature__ = OPTAX_SIGNATURE  # for optax.inject_hyperparams
lars.calls = 0


def cases(suite):
    """The test cases for lars in a unittest suite; Optax's ids hold the arguments."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        elif "lars" in test.id():
            yield test


def run_optax_suite():
    """Run Optax's own cases, print them and their counts; the exit status."""
    jax.config.update("jax_platforms", "cpu")
    # sharding_test asks for eight devices, but too late when another file ran before.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"
    alias = importlib.import_module("optax._src.alias")
    alias.lars = optax.lars = lars  # before the tests are imported: some build it then
    counts = {"ran": 0, "failed": 0, "skipped": 0}
    missing = []
    for name in ("alias_test", "sharding_test"):
        try:
            module = importlib.import_module(f"optax._src.{name}")
        except ImportError as error:
            missing.append(f"optax._src.{name} cannot be imported: {error}")
            continue
        everything = unittest.defaultTestLoader.loadTestsFromModule(module)
        selected = unittest.TestSuite(cases(everything))
        assert selected.countTestCases(), f"no case of {name} names lars"
        calls = lars.calls
        # sharding_test skips versions below 0.7.2 by comparing text, where "0.10" is
        # less than "0.7"; a version with one digit is what it means.
        version = "0.9" if jax.__version_info__ >= (0, 8, 1) else jax.__version__
        with mock.patch.object(jax, "__version__", version):
            result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(selected)
        if name == "alias_test":
            assert lars.calls - calls >= result.testsRun, "ours was not what ran"
        counts["ran"] += result.testsRun
        counts["failed"] += len(result.failures) + len(result.errors)
        counts["skipped"] += len(result.skipped)
    print("; ".join([*(f"{key} {count}" for key, count in counts.items()), *missing]))
    return 1 if counts["failed"] else UNAVAILABLE if missing else 0


def test_passes_the_tests_of_optax_lars():
    own = str(REPOSITORY), str(REPOSITORY / "tests/helpers")
    path = [os.environ.get("OPTAX_TESTS"), *own, os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it mostly compiles
    }
    # A process of its own: eight devices, and none of our own tests' settings.
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == UNAVAILABLE:
        pytest.skip(last)
    assert done.returncode == 0, done.stdout + done.stderr
    print(last)


def update(optimizer, params, **extra):
    """The first update, with the parameters as gradients."""
    return optimizer.update(params, optimizer.init(params), params, **extra)[0]


def parabola(params):
    return jnp.sum(jnp.abs(params - jnp.array([2.0, -3.0, 0.5])) ** 2)


def rosenbrock(params):
    return abs(1j - params[0]) ** 2 + 100 * abs(params[1] - params[0] ** 2) ** 2


@pytest.mark.parametrize(("loss", "start", "minimum"), [
    (parabola, np.float32([-1, 8, 0.5]), [2, -3, 0.5]),
    (parabola, np.complex64([-1, 8j, 0.5]), [2, -3, 0.5]),
    # From zero, where the ratio falls back to 1 and the step is γg.
    (rosenbrock, np.zeros(2, np.complex64), [1j, -1]),
], ids=["parabola", "complex_parabola", "complex_rosenbrock_from_zero"])  # fmt: skip
def test_reaches_the_minimum(loss, start, minimum):
    """Optax's test_optimization; and its second update must not trace it again."""
    optimizer = lars(1.0)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        # JAX's gradient of a real loss is the conjugate of the direction of ascent.
        grads = jax.grad(loss)(params).conj()
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    carry = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    carry = step(*step(*carry))
    assert len(traces) == 1
    params, _ = jax.lax.fori_loop(0, 10_000, lambda _, c: step(*c), carry)
    # At a constant rate it never settles: with momentum it circles the minimum within
    # γη‖w‖/(1−μ), a hundredth of ‖w‖.
    np.testing.assert_allclose(params, minimum, atol=0.01 * np.linalg.norm(minimum))


def test_maps_over_the_parameters_in_its_state():
    """Optax's test_optimization, tree_map_params: it finds the momentum, no count."""
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    optimizer = lars(lambda count: 1.0, weight_decay=lambda count: 0.1)
    state = optimizer.init(params)
    mapped = optax.tree.map_params(optimizer, lambda m: m + 1, state)
    for leaf in jax.tree.leaves(optax.tree.get(mapped, "trace")):
        np.testing.assert_array_equal(leaf, 1)
    counts = optax.tree.get_all_with_path(mapped, "count")
    assert [int(value) for _, value in counts] == [0, 0]


def test_ignores_extra_arguments():
    """Optax's test_optimizers_accept_extra_args."""
    params = jnp.array([1.0, 2.0])
    extra = update(lars(1.0), params, value=1.0, not_an_argument=2)
    np.testing.assert_array_equal(extra, update(lars(1.0), params))


def test_is_the_same_inside_inject_hyperparams():
    """Optax's test_optimizers_can_be_wrapped_in_inject_hyperparams."""
    params = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))]
    grads = [jnp.full((2, 3), 0.2), -jnp.ones((2, 5, 2))]
    plain, injected = lars(1.0, 0.1), optax.inject_hyperparams(lars)(1.0, 0.1)
    state, injected_state = plain.init(params), jax.jit(injected.init)(params)
    for _ in range(2):
        expected = _, state = jax.jit(plain.update)(grads, state, params)
        found = jax.jit(injected.update)(grads, injected_state, params)
        updates, injected_state = found
        # float32 constants folded by the compiler or not: a rounding or two apart.
        close = partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, (updates, injected_state.inner_state), expected)


@pytest.mark.parametrize("dtype", HALF + FULL)
def test_keeps_shapes_and_dtypes(dtype):
    """Optax's test_preserve_dtype and test_state_shape_dtype_shard_stability."""
    with enable_x64(dtype in ("float64", "complex128")):
        params = jnp.array([1.0, 2.0], dtype)
        optimizer = lars(1.0, weight_decay=0.1)
        state = optimizer.init(params)
        updates, new_state = jax.jit(optimizer.update)(params, state, params)
        assert updates.dtype == params.dtype
        assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_waits_inside_multi_steps(dtype):
    """Optax's test_gradient_accumulation, and the update when its turn comes."""
    params = jnp.array([1.0, 2.0], dtype)
    accumulated = optax.MultiSteps(lars(1.0), every_k_schedule=4)
    state, step = accumulated.init(params), jax.jit(accumulated.update)
    # The mean of four equal gradients is that gradient, to a rounding of its dtype.
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    for expected in (*3 * [jnp.zeros_like(params)], update(lars(1.0), params)):
        updates, state = step(params, state, params)
        np.testing.assert_allclose(updates, expected, rtol=tolerance)


def test_state_is_made_from_shapes_and_keeps_its_sharding():
    """Optax's sharding_test: abstract parameters, and a mesh of Explicit axes."""
    optimizer = lars(1.0)
    assert optimizer.init(jax.ShapeDtypeStruct((2, 8, 4), jnp.float32)) is not None
    count = 2 if jax.device_count() > 1 else 1
    mesh = jax.make_mesh((count,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P(None, "x"))
    with jax.set_mesh(mesh):
        params = jnp.ones((2, 8, 4), jnp.float16, out_sharding=sharding)
        state = optimizer.init(params)
        types = jax.tree.map(jax.typeof, state)
        for update in (optimizer.update, jax.jit(optimizer.update)):
            updates, new_state = update(params, state, params)
            assert jax.tree.map(jax.typeof, new_state) == types
            assert jax.typeof(updates) == jax.typeof(params)


if __name__ == "__main__":
    sys.exit(run_optax_suite())
