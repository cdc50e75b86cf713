"""Law: the estimates of noise and signal are unbiased, in every way to compute them."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compat import enable_x64
from jax.sharding import Mesh, PartitionSpec
from trees import assert_refused

from lars_optax import NoiseScale, gradient_noise_scale

AXIS = "devices"


def squares(grads):
    return jax.tree.map(lambda g: jnp.vdot(g, g), grads)


def test_the_mean_over_all_batches_of_a_small_population_is_exact():
    """Every ordered batch with replacement is as likely as any other."""
    gradients = np.random.default_rng(0).normal(1.0, 2.0, (4, 3))
    mean = gradients.mean(0)
    noise = np.sum((gradients - mean) ** 2) / len(gradients)
    found = []
    with enable_x64(True):
        for batch in product(gradients, repeat=3):
            big = np.sum(np.mean(batch, 0) ** 2)
            small = np.sum(np.square(batch)) / 3  # the mean over three batches of one
            found.append(gradient_noise_scale(small, big, 1, 3)[:2])
    np.testing.assert_allclose(np.mean(found, 0), [noise, np.sum(mean**2)], rtol=1e-12)


@pytest.mark.parametrize("nested", [True, False])
def test_the_estimates_have_no_bias_for_a_known_gradient_and_covariance(nested):
    rng = np.random.default_rng(1)
    mean, deviation = np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0, 2.0])
    draws, small_size, parts = 1000, 4, 8
    big_size = small_size * parts

    def draw():
        return rng.normal(mean, deviation, (draws, parts, small_size, 3)).mean(2)

    small = draw()
    big = (small if nested else draw()).mean(1)
    small_norm, big_norm = np.sum(small**2, -1).mean(1), np.sum(big**2, -1)
    found = gradient_noise_scale(small_norm, big_norm, small_size, big_size)
    for estimates, true in (
        (found.noise, np.sum(deviation**2)),
        (found.signal, np.sum(mean**2)),
    ):
        error = np.std(estimates, ddof=1) / np.sqrt(draws)
        assert abs(np.mean(estimates) - true) < 3 * error
        assert error < 0.03 * true


def test_the_formulas_are_those_of_appendix_a():
    small, big = np.float32([[3.0, 0.5], [2.0, 9.0]]), np.float32([[1.0, 0.4], [1, 7]])
    b, B = 32, 1024
    found = gradient_noise_scale(small, big, b, B)
    signal = (B * np.float64(big) - b * np.float64(small)) / (B - b)
    noise = (np.float64(small) - big) / (1 / b - 1 / B)
    expected = NoiseScale(noise, signal, noise / signal)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), found, expected)
    traced = jax.jit(gradient_noise_scale)(small, big, b, B)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), traced, expected)


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)


def problem(examples=32):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (5, 4)),
        "second": jax.random.normal(keys[1], (4, 2)),
    }
    x, y = jax.random.normal(keys[2], (examples, 5)), jax.random.normal(keys[3], (2,))
    return params, (x, jnp.broadcast_to(y, (examples, 2)))


def expected_estimates(params, batch, devices):
    """The estimates from the gradient of each device's examples, in float64."""
    cut = [x.reshape(devices, -1, x.shape[-1]) for x in batch]
    each = [jax.grad(loss)(params, part) for part in zip(*cut, strict=True)]
    b, B = len(batch[0]) // devices, len(batch[0])
    found = {}
    for name in params:
        parts = np.stack([np.float64(grads[name]) for grads in each])
        s, S = np.sum(parts**2) / devices, np.sum(parts.mean(0) ** 2)
        found[name] = ((s - S) / (1 / b - 1 / B), (B * S - b * s) / (B - b))
    return found


def assert_estimates(found, params, batch, devices):
    expected = expected_estimates(params, batch, devices)
    for name, (noise, signal) in expected.items():
        np.testing.assert_allclose(found.noise[name], noise, rtol=1e-4)
        np.testing.assert_allclose(found.signal[name], signal, rtol=1e-4)
        np.testing.assert_allclose(found.scale[name], noise / signal, rtol=1e-4)
    noise, signal = np.sum(list(expected.values()), 0)
    total = [noise, signal, noise / signal]
    np.testing.assert_allclose(found.total(), total, rtol=1e-4)


def on_each(params, part):
    """The estimates on each of all devices, with 8 examples on each."""
    grads = jax.grad(loss)(params, part)
    grads, small = jax.lax.pmean((grads, squares(grads)), AXIS)
    return gradient_noise_scale(small, squares(grads), 8, 8 * jax.local_device_count())


def test_pmap_needs_one_mean_of_gradients_and_their_squared_norms():
    devices = jax.local_device_count()
    params, batch = problem(8 * devices)
    cut = [x.reshape(devices, 8, -1) for x in batch]
    found = jax.pmap(on_each, AXIS, in_axes=(None, 0))(params, cut)
    found = jax.tree.map(lambda x: x[0], found)
    assert_estimates(found, params, batch, devices)


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="jax before 0.6.1")
def test_shard_map_gives_the_same():
    devices = jax.local_device_count()
    params, batch = problem(8 * devices)
    whole, shared = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        on_each,
        mesh=Mesh(np.array(jax.devices()), (AXIS,)),
        in_specs=(whole, shared),
        out_specs=whole,
        check_vma=False,
    )
    assert_estimates(jax.jit(mapped)(params, batch), params, batch, devices)


def test_micro_batches_give_the_same():
    params, batch = problem(32)

    def add(total, part):
        grads = jax.grad(loss)(params, part)
        return optax.tree.add(total, (grads, squares(grads))), None

    cut = [x.reshape(4, 8, -1) for x in batch]
    zeros = jax.tree.map(jnp.zeros_like, (params, squares(params)))
    total, _ = jax.lax.scan(add, zeros, cut)
    grads, small = jax.tree.map(lambda x: x / 4, total)
    found = gradient_noise_scale(small, squares(grads), 8, 32)
    assert_estimates(found, params, batch, 4)


def test_the_moving_average_is_of_noise_and_signal_apart():
    rng = np.random.default_rng(2)
    drawn = rng.random((9, 2))
    steps = [NoiseScale({"w": n}, {"w": s}, {"w": n / s}) for n, s in drawn]
    weights = 0.9 ** np.arange(8, -1, -1.0)
    average = jax.tree.map(jnp.zeros_like, steps[0])
    for step in steps:
        average = jax.jit(NoiseScale.moving_average)(step, average, 0.9)
    noise, signal = np.average(drawn, axis=0, weights=weights)
    np.testing.assert_allclose(average.scale["w"], noise / signal, rtol=1e-5)
    grown = 1 - 0.9**9  # as the average began with zeros
    np.testing.assert_allclose(average.noise["w"], grown * noise, rtol=1e-5)
    np.testing.assert_allclose(average.signal["w"], grown * signal, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "int32", "float32", "float64"]
)
def test_estimates_are_in_float32_at_least(dtype):
    with enable_x64(dtype == "float64"):
        norms = jnp.asarray([9, 4], dtype)
        for x in gradient_noise_scale(norms[0], norms[1], 1, 2):
            assert x.dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize("size", [int, np.int64, np.float64, jnp.int32, jnp.float32])
def test_no_argument_changes_the_dtype_of_the_norms(size, strict, x64):
    number = size(0.5) if size in (np.float64, jnp.float32) else 0.5
    for dtype in (jnp.bfloat16, jnp.float32):
        found = gradient_noise_scale(dtype(3.0), dtype(2.0), size(1), size(2))
        average = found.moving_average(NoiseScale(*jnp.zeros(3, jnp.float32)), number)
        for x, expected in zip((*found, *average), (2, 1, 2, 1, 0.5, 2), strict=True):
            assert x.dtype == "float32"
            assert x == expected


def test_a_batch_slightly_larger_than_the_other_loses_no_precision():
    sizes = jnp.array([8191, 8192], jnp.int32)
    noise = gradient_noise_scale(3.0, 2.0, *sizes).noise
    np.testing.assert_allclose(noise, 8191 * 8192, rtol=1e-6)


def test_a_ratio_of_zeros_is_nan():
    zeros = NoiseScale(0.0, 0.0, 0.0)
    assert np.isnan(zeros.moving_average(zeros).scale)
    assert np.isnan(gradient_noise_scale({}, {}, 1, 2).total().scale)


def test_leaves_without_a_gradient_are_left_out():
    tree = {"frozen": None, "w": 3.0}
    found = gradient_noise_scale(tree, {"frozen": None, "w": 2.0}, 1, 2)
    assert found.noise == {"frozen": None, "w": 2.0}
    assert found.total() == (2.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small_batch_size": 0}, "small_batch_size must be finite and > 0, got 0"),
        ({"small_batch_size": True}, "small_batch_size must be a number, got True"),
        ({"big_batch_size": np.inf}, "big_batch_size must be finite and > 0, got inf"),
        ({"big_batch_size": 8}, "must be larger than small_batch_size, got 8 and 8"),
        ({"small_batch_size": 17}, "larger than small_batch_size, got 16 and 17"),
        ({"big_square_norm": {"v": 1.0}}, "but they differ at 'w', 'v'"),
        (
            {"big_square_norm": 1.0},
            "same structure, but they differ at 'w', the ro",
        ),
        (
            {"small_square_norm": {"w": np.ones(8)}},
            r"small_square_norm has shape \(8,\) at 'w', but big_square_norm has shape "
            r"\(\)\. Pass the mean of the squared norms",
        ),
        ({"big_square_norm": {"w": None}}, r"shape \(\) at 'w', but .* has NoneType"),
        ({"big_square_norm": {"w": 1j}}, "big_square_norm is complex at 'w'"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = {
        "small_square_norm": {"w": 1.0},
        "big_square_norm": {"w": 1.0},
        "small_batch_size": 8,
        "big_batch_size": 16,
    }
    assert_refused(message, gradient_noise_scale, **arguments | change)


def test_a_decay_out_of_range_is_refused():
    one = gradient_noise_scale(2.0, 1.0, 1, 2)
    assert_refused(
        "decay must be finite and >= 0 and < 1", one.moving_average, one, 1.0
    )


def test_an_average_of_another_structure_is_refused():
    found = gradient_noise_scale({"w": 2.0}, {"w": 1.0}, 1, 2)
    message = "previous.noise and noise must have .* differ at the root .*, 'w'. Begin"
    assert_refused(message, found.moving_average, NoiseScale(0.0, 0.0, 0.0))
    whole = gradient_noise_scale(jnp.ones(3), jnp.ones(3), 1, 2)
    zeros = NoiseScale(*jnp.zeros((3, 2, 1)))
    message = r"previous.noise has shape \(2, 1\) at .* noise has shape \(3,\). Begin"
    assert_refused(message, whole.moving_average, zeros)
    assert_refused("previous must be a NoiseScale", whole.moving_average, (0.0, 0.0))


def test_integers_are_averaged_as_floats():
    old, new = NoiseScale(0, 0, 0), NoiseScale(6, 5, 1)
    average = new.moving_average(old, jnp.float32(0.9))
    np.testing.assert_allclose(average, [0.6, 0.5, 1.2], rtol=1e-6)
