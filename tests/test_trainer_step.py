"""One update and one evaluation: alike on 4 devices, 1 device and sharded arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.imagenet import engine
from examples.imagenet.config import Optimizer
from examples.imagenet.models import make_model
from examples.imagenet.optimizer import make_optimizer, make_schedule
from examples.imagenet.train import (
    Batch,
    TrainState,
    eval_step,
    from_moments,
    init_state,
    to_moments,
    train_step,
)

SHAPE = (12, 12, 1)
KEY = jax.random.key(0, impl="rbg")  # compiles fast


@pytest.fixture(scope="module")
def devices():
    found = engine.start_devices(None)[:4]
    assert len(found) == 4, "start the tests with 4 virtual CPU devices"
    return found


def make_setup(network="alexnet-small", **optimizer):
    model = make_model(network, classes=10, width=0.5, pixel_mean=128.0, pixel_std=74.0)
    config = Optimizer(warmup_epochs=1, **optimizer)
    schedule = make_schedule(config, steps_per_epoch=2, epochs=4)
    return model, make_optimizer(config, schedule)


def make_batch(seed, n):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, *SHAPE), np.uint8)
    return Batch(images, random.integers(0, 10, n, np.int32))


def run_pmap(model, tx, batches, devices):
    step = partial(train_step, model=model, tx=tx)
    step = engine.parallelize(step, devices, donate_state=True)
    state = init_state(KEY, model, tx, SHAPE)
    state = engine.replicate(state, devices)
    for batch in batches:
        state, metrics = step(state, batch)
    engine.assert_replicated(state)
    return jax.device_get((state, metrics))


def run_jit(model, tx, batches, devices):
    """The whole batch is one array spread over the devices; the step does not know."""
    step = jax.jit(partial(train_step, model=model, tx=tx, axis_name=None))
    mesh = Mesh(np.asarray(devices), ("batch",))
    state = init_state(KEY, model, tx, SHAPE)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    for batch in batches:
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("batch")))
        state, metrics = engine.one_in_flight(step(state, batch), devices)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param({"name": "sgd", "learning_rate": 0.1}, id="sgd"),
        pytest.param({"name": "lars", "learning_rate": 20.0}, id="lars"),
    ],
)
def test_pmap_and_sharded_jit_train_as_one_device_does(optimizer, devices):
    model, tx = make_setup(**optimizer)
    batches = [make_batch(seed, 32) for seed in range(5)]
    one, one_metrics = run_pmap(model, tx, batches, devices[:1])
    start = init_state(KEY, model, tx, SHAPE)
    moved = max(
        np.abs(a - b).max()
        for a, b in zip(
            jax.tree.leaves(one.params), jax.tree.leaves(start.params), strict=True
        )
    )
    assert moved > 1e-3
    for other, metrics in (
        run_pmap(model, tx, batches, devices),
        run_jit(model, tx, batches, devices),
    ):
        assert other.step == 5
        # The order of the sums over 32 images alone differs: float32 roundings of
        # 6e-8, which five steps of a network this small magnify less than 100 times.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=6e-6 * np.abs(b).max()
            ),
            other.params,
            one.params,
        )
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=1e-5)


def test_gradient_is_of_the_mean_loss_of_the_whole_batch(devices):
    """One plain SGD step against the gradient written out: no factor of the devices."""
    model, tx = make_setup(name="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0)
    batches = [make_batch(0, 8), make_batch(1, 8)]  # the first has rate 0
    state, metrics = run_pmap(model, tx, batches, devices)

    def loss(params):
        logits = model.apply({"params": params}, batches[1].images, train=False)
        chosen = jax.nn.log_softmax(logits)[jnp.arange(8), batches[1].labels]
        return -chosen.mean()

    start = init_state(KEY, model, tx, SHAPE).params
    value, grads = jax.jit(jax.value_and_grad(loss))(start)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    # Rate 0.5 at step 1 of a two-step warm-up. Sums in another order: 1e-5.
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(
            new - old, -0.5 * g, rtol=0, atol=1e-5 * np.abs(g).max() + 1e-7
        ),
        state.params,
        start,
        grads,
    )


def test_batch_stats_are_those_of_the_whole_batch(devices):
    """conv1 sees no normalisation, so its moments over 32 images are exact to check."""
    model, tx = make_setup("alexnet-bn-small", name="sgd", learning_rate=0.1)
    batch = make_batch(0, 32)
    # Images that differ much between the devices: the case that mean(var) gets wrong.
    scale = np.repeat([0.1, 0.4, 0.7, 1.0], 8)[:, None, None, None]
    batch = batch._replace(images=(batch.images * scale).astype(np.uint8))
    start = init_state(KEY, model, tx, SHAPE)
    state, _ = run_pmap(model, tx, [batch], devices)
    kernel = start.params["conv1"]["kernel"]
    activations = jax.lax.conv_general_dilated(
        (batch.images.astype(np.float32) - 128.0) / 74.0,
        kernel,
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    activations = np.asarray(activations, np.float64)
    mean, var = activations.mean((0, 1, 2)), activations.var((0, 1, 2))
    found = state.batch_stats["bn1"]
    # Running moments start at 0 and 1 and keep 0.9; float32 sums of 1,152 values.
    np.testing.assert_allclose(found["mean"], 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_moments_of_equal_shares_average_to_those_of_the_whole():
    shares = np.random.default_rng(0).normal(5.0, 2.0, (4, 100, 3)) * [[[1.0, 9.0, 0]]]
    shares += np.arange(4)[:, None, None]
    stats = {"bn": {"mean": shares.mean(1), "var": shares.var(1)}}
    moments = jax.tree.map(lambda m: jnp.asarray(m).mean(0), to_moments(stats))
    merged = from_moments(moments)["bn"]
    whole = shares.reshape(400, 3)
    # float32; E x² − (E x)² cancels about one digit here.
    np.testing.assert_allclose(merged["mean"], whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(merged["var"], whole.var(0), rtol=1e-5)


def test_merged_variance_is_never_negative():
    moments = {"mean": jnp.float32(3.0), "square": jnp.float32(8.9999)}
    assert from_moments({"bn": moments})["bn"]["var"] == 0


@pytest.mark.parametrize("network", ["alexnet-small", "alexnet-bn-small"])
def test_masked_rows_do_not_count(network, devices):
    model, tx = make_setup(network, name="sgd")
    state = init_state(KEY, model, tx, SHAPE)
    evaluate = engine.parallelize(partial(eval_step, model=model), devices)
    whole = make_batch(0, 16)
    mask = np.arange(16) < 11
    sums = jax.device_get(evaluate(state, whole._replace(mask=mask)))
    short = Batch(whole.images[:11], whole.labels[:11], np.ones(11, bool))
    plain = jax.jit(partial(eval_step, model=model, axis_name=None))
    expected = jax.device_get(plain(state, short))
    assert sums["count"] == expected["count"] == 11
    assert sums["correct"] == expected["correct"]
    np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)


def test_copies_that_differ_are_named(devices):
    mesh = Mesh(np.asarray(devices), ("batch",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = TrainState(*(jax.device_put(jnp.arange(3.0), replicated) for _ in range(4)))
    engine.assert_replicated(state)
    copies = [
        jax.device_put(jnp.arange(3.0) + (i == 2), d) for i, d in enumerate(devices)
    ]
    drifted = jax.make_array_from_single_device_arrays((3,), replicated, copies)
    with pytest.raises(RuntimeError, match="params"):
        engine.assert_replicated(state._replace(params=drifted))


def test_networks_are_shaped_like_alexnet_and_its_bn_sibling():
    for network, leaves in (("alexnet-small", 10), ("alexnet-bn-small", 13)):
        model, tx = make_setup(network, name="sgd")
        init = partial(init_state, model=model, tx=tx, image_shape=(28, 28, 1))
        state = jax.eval_shape(init, KEY)
        assert len(jax.tree.leaves(state.params)) == leaves
        assert state.params["conv1"]["kernel"].shape == (5, 5, 1, 8)
        assert state.params["fc1"]["kernel"].shape == (7 * 7 * 16, 64)
        assert bool(state.batch_stats) == ("bn" in network)
    with pytest.raises(ValueError, match="alexnet-small"):
        make_model("lenet", classes=10, width=1.0, pixel_mean=0.0, pixel_std=1.0)
