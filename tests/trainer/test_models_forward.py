"""What the networks compute: against Caffe's layers in NumPy, and in training."""

from functools import partial

import caffe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import KEY, logits_of, make, random_inputs
from steps import state_of

import lars_optax
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import layers
from examples.imagenet.models.resnet import ResNet
from examples.imagenet.step import devices as engine
from examples.imagenet.step.step import train_step


def normal(*shape, scale=1.0):
    random = np.random.default_rng(0)
    return (scale * random.normal(size=shape)).astype(np.float32)


def assert_close(found, expected, tolerance=1e-5):
    """Float32's roundings, of the largest value."""
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_local_response_norm_sums_five_channels_and_divides_alpha(channels):
    x = normal(2, 3, 3, channels, scale=200.0)  # large enough for α to matter
    expected = caffe.lrn(x.astype(np.float64))
    assert np.abs(expected / x).min() < 0.8
    assert_close(layers.local_response_norm(x), expected)


@pytest.mark.parametrize(("size", "out"), [(112, 56), (55, 27), (27, 13), (8, 4)])
def test_pooling_rounds_up_and_cuts_the_last_window_off(size, out):
    x = normal(2, size, size, 3) - 5.0  # negative: padding must not win
    pooled = layers.max_pool(x)
    assert pooled.shape == (2, out, out, 3)
    np.testing.assert_array_equal(pooled, caffe.pool(x).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [8, 9])
def test_of_equal_pixels_the_first_of_a_window_has_the_gradient(size, dtype):
    x = np.maximum(normal(2, size, size, 3).round(), 0)  # many are equal
    pooled, pull = jax.vjp(layers.max_pool, jnp.asarray(x, dtype))
    cotangent = normal(*pooled.shape).round(1)
    expected = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(cotangent.shape):
        window = x[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = np.unravel_index(window.argmax(), window.shape)
        expected[n, 2 * i + row, 2 * j + column, c] += cotangent[n, i, j, c]
    (found,) = jax.jit(pull)(jnp.asarray(cotangent, dtype))
    assert found.dtype == dtype
    assert_close(np.float64(found), expected, 1e-6 if dtype == "float32" else 2**-7)


@pytest.mark.parametrize("as_slices", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_convolution_is_the_loop_over_groups(groups, as_slices):
    x, kernel = normal(2, 9, 8, 6), normal(3, 3, 6 // groups, 12)
    found = layers.grouped_conv(x, kernel, groups, 2, 1, as_slices=as_slices)
    wide = x.astype(np.float64), kernel.astype(np.float64)
    assert_close(found, caffe.conv(*wide, stride=2, pad=1, group=groups))


def test_gradients_of_slices_are_those_of_the_grouped_convolution():
    x, kernel, cotangent = normal(2, 9, 8, 6), normal(3, 3, 3, 4), normal(2, 9, 8, 4)

    def pulled_back(as_slices):
        def convolve(x, kernel):
            return layers.grouped_conv(x, kernel, 2, 1, 1, as_slices=as_slices)

        return jax.vjp(convolve, x, kernel)[1](cotangent)

    jax.tree.map(assert_close, pulled_back(True), pulled_back(False))


def test_the_form_of_a_grouped_convolution_does_not_show():
    found = []
    for platform in ("cpu", "gpu"):
        model = make("alexnet", 10, width=1 / 32, platform=platform)
        variables, images = random_inputs(model, 2, 39)
        run = jax.jit(partial(model.apply, train=False))
        program = run.lower(variables, images).as_text()
        assert ("feature_group_count = 2" in program) == (platform == "gpu")
        found.append(run(variables, images))
    assert_close(*found)


@pytest.mark.parametrize("side", [39, 67])
@pytest.mark.parametrize("network", caffe.ALEXNETS)
def test_alexnet_is_the_prototxt(network, side):
    # Not divided by 64: LRN of pixels near 0 would hide.
    model = make(network, 10, width=1 / 32, pixel_std=1.0)
    variables, images = random_inputs(model, 2, side)
    wide = jax.tree.map(np.float64, variables)
    stats = wide.get("batch_stats", {})
    expected = caffe.alexnet(network, wide["params"], stats, images - 128.0)
    assert_close(logits_of(model, variables, images), expected)


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v1.5"])
@pytest.mark.parametrize("small_stem", [False, True], ids=["pooled", "small_stem"])
def test_resnet_is_the_prototxt(v1, small_stem):
    mean, form = (100.0, 110.0, 120.0), {"blocks": (2, 1), "small_stem": small_stem}
    stride = 1 if v1 else 2
    model = ResNet(10, mean, 256.0, width=1 / 16, stride_in=stride, **form)
    variables, images = random_inputs(model, 2, 24)
    wide = jax.tree.map(np.float64, variables)
    inputs = wide["params"], wide["batch_stats"], (images - np.array(mean)) / 256.0
    expected = caffe.resnet((2, 1), *inputs, v1=v1, small_stem=small_stem)
    assert_close(logits_of(model, variables, images), expected)


def test_dropout_drops_half_in_training_alone_and_doubles_the_rest():
    model = make("alexnet", 10, width=1 / 8)
    variables, images = random_inputs(model, 4, 39)

    @partial(jax.jit, static_argnames="train")
    def run(train):
        rngs = {"dropout": KEY} if train else {}
        options = {"train": train, "rngs": rngs, "capture_intermediates": True}
        found = model.apply(variables, images, **options)[1]["intermediates"]
        return {k: found[k]["__call__"][0] for k in ("fc6", "drop6", "fc7", "drop7")}

    for train in (True, False):
        found = run(train)
        for fc, drop in (("fc6", "drop6"), ("fc7", "drop7")):
            before, after = np.maximum(found[fc], 0), found[drop]
            kept = after != 0
            np.testing.assert_array_equal(after[kept], (1 + train) * before[kept])
            share = kept[before > 0]
            # Five standard errors of a share of one half.
            margin = 2.5 / np.sqrt(share.size)
            assert abs(share.mean() - 0.5) < margin if train else share.all()


def test_dropout_follows_its_key_and_0_needs_none():
    model = make("alexnet", 10, width=1 / 16)
    variables, images = random_inputs(model, 2, 39)

    @jax.jit
    def run(key):
        return model.apply(variables, images, train=True, rngs={"dropout": key})

    one, again, other = (run(jax.random.key(s, impl="rbg")) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).min() > 0
    plain = make("alexnet", 10, width=1 / 16, dropout=0.0)
    trained = jax.jit(partial(plain.apply, train=True))(variables, images)
    assert_close(trained, logits_of(plain, variables, images))


def test_synchronised_batch_norm_is_that_of_one_device():
    devices = engine.start_devices(None)[:4]
    whole = make("alexnet_bn_small", 10, width=0.5)
    synced = whole.clone(bn_axis_name="batch")
    variables, images = random_inputs(whole, 16, 12)
    images[:4] //= 4  # one device's images differ from the others'

    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    expected = jax.jit(partial(run, whole))(images)
    shares = images.reshape(4, 4, 12, 12, 3)
    found, stats = jax.pmap(partial(run, synced), "batch", devices=devices)(shares)
    assert_close(found.reshape(16, 10), expected[0])
    for device in range(4):
        own = jax.tree.map(lambda s, d=device: s[d], stats)
        jax.tree.map(assert_close, own, expected[1])


def test_one_lars_step_moves_every_kernel_by_the_same_share_of_its_norm():
    """Without decay and momentum ‖Δw‖ = γ·η·‖w‖, wherever a gradient arrives."""
    model = make("alexnet", 10, width=1 / 16)
    tx = lars_optax.lars(10.0, trust_coefficient=0.001, momentum=None)
    variables, images = random_inputs(model, 8, 67)
    params = variables["params"]
    batch = Batch(images, np.arange(8, dtype=np.int32))
    step = jax.jit(partial(train_step, model=model, tx=tx, axis_name=None))
    new, metrics = jax.device_get(step(state_of(variables, tx.init(params)), batch))
    assert np.isfinite(metrics["loss"])

    def check(adapted, old, new):
        if adapted:
            moved = np.linalg.norm((new - old).ravel()) / np.linalg.norm(old.ravel())
            # new − old has lost two digits of float32's seven.
            np.testing.assert_allclose(moved, 0.01, rtol=1e-4)

    mask = lars_optax.exclude_bias_and_norm(params)
    jax.tree.map(check, mask, params, new.params)
