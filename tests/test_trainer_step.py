"""One update and one evaluation: the same on any devices, however they are cut."""

import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from steps import TINY, assert_params_close, make_batch, make_setup, run, start

from examples.imagenet import engine
from examples.imagenet.engine import AXIS
from examples.imagenet.models import make_model
from examples.imagenet.train import (
    SOLVERS,
    Batch,
    TrainState,
    eval_step,
    from_moments,
    to_moments,
    train_step,
)

# The order of the sums over 32 images alone differs: float32 roundings of 6e-8, which
# five steps of a network this small magnify less than 100 times.
ROUNDINGS = 6e-6

SGD = pytest.param({"name": "sgd", "learning_rate": 0.1}, id="sgd")
LARS = pytest.param({"name": "lars", "learning_rate": 20.0}, id="lars")


@pytest.fixture(scope="module")
def devices():
    found = engine.start_devices(None)[:4]
    assert len(found) == 4, "start the tests with 4 virtual CPU devices"
    return found


@pytest.mark.parametrize("optimizer", [SGD, LARS])
def test_every_split_of_a_batch_trains_as_one_device_does(optimizer, devices):
    """A factor of the devices or slots in the gradient shows with SGD."""
    setup = make_setup(**optimizer)
    batches = [make_batch(seed, 32) for seed in range(5)]
    one, one_metrics = run(setup, batches, devices[:1])
    first = jax.tree.leaves(start(setup).params)
    last = jax.tree.leaves(one.params)
    assert max(np.abs(a - b).max() for a, b in zip(first, last, strict=True)) > 1e-3
    splits = [
        (4, {}),
        (4, {"name": "shard_map"}),
        (1, {"accumulate": 4}),
        (1, {"solvers": 2}),
        (2, {"accumulate": 2, "solvers": 2, "name": "shard_map"}),
    ]
    for n, options in splits:
        other, metrics = run(setup, batches, devices[:n], **options)
        assert other.step == 5
        assert_params_close(other.params, one.params, ROUNDINGS)
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=1e-5)
    sharded, _ = run_jit(setup, batches, devices)
    assert_params_close(sharded.params, one.params, ROUNDINGS)


def run_jit(setup, batches, devices):
    """The whole batch is one array spread over the devices; the step does not know."""
    model, tx, stats = setup
    step = partial(train_step, model=model, tx=tx, layer_stats=stats, axis_name=None)
    step = jax.jit(step)
    mesh = Mesh(np.asarray(devices), (AXIS,))
    state = jax.device_put(start(setup), NamedSharding(mesh, PartitionSpec()))
    for batch in batches:
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))
        state, metrics = engine.one_in_flight(step(state, batch), devices)
    return jax.device_get((state, metrics))


def test_slots_are_the_same_on_any_device_with_batch_norm_and_dropout(devices):
    """Four slots of 4 images: moments and dropout go by a slot's number, not its place.

    There is no reference without slots: a slot is what BatchNorm sees.
    """
    setup = make_setup(TINY, name="lars", learning_rate=5.0)
    batches = [make_batch(seed, 16) for seed in range(3)]
    four, _ = run(setup, batches, devices)
    for n, options in [
        (1, {"accumulate": 4}),
        (1, {"solvers": 4}),
        (2, {"solvers": 2, "name": "shard_map"}),
    ]:
        other, _ = run(setup, batches, devices[:n], **options)
        assert_params_close(other.params, four.params, ROUNDINGS)
        assert_params_close(other.batch_stats, four.batch_stats, 1e-5)
    # Two slots are another network: the test can tell.
    two, _ = run(setup, batches, devices[:2])
    with pytest.raises(AssertionError):
        assert_params_close(two.params, four.params, ROUNDINGS)


def test_synchronized_batch_norm_sees_the_whole_batch(devices):
    local = make_setup("alexnet-bn-small", name="sgd", learning_rate=0.1)
    together = local[0].clone(bn_axis_name=(AXIS, SOLVERS))
    sync = make_setup(together, name="sgd", learning_rate=0.1)
    batches = [make_batch(seed, 32) for seed in range(3)]
    whole, _ = run(local, batches, devices[:1])
    for n, options in [(4, {}), (2, {"solvers": 2, "name": "shard_map"})]:
        other, _ = run(sync, batches, devices[:n], **options)
        assert_params_close(other.params, whole.params, 3e-5)  # BatchNorm magnifies
        assert_params_close(other.batch_stats, whole.batch_stats, 3e-5)
    apart, _ = run(local, batches, devices)
    with pytest.raises(AssertionError):
        assert_params_close(apart.params, whole.params, 3e-5)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
@pytest.mark.parametrize(("accumulate", "solvers"), [(1, 1), (4, 2)])
def test_gradients_are_reduced_once_an_update(name, accumulate, solvers, devices):
    """All-reduces carry each gradient, moment and metric once, and in no loop."""
    setup = make_setup("alexnet-bn-small", name="lars")
    model, tx, stats = setup
    step = partial(train_step, model=model, tx=tx, layer_stats=stats)
    step = partial(step, accumulate=accumulate, solvers=solvers)
    step = engine.parallelize(step, devices, engine=name, donate_state=True)
    state = engine.replicate(start(setup), devices)
    text = step.compiled_text(state, make_batch(0, 32))
    carried = (state.params, to_moments(state.batch_stats))
    values = sum(leaf.size for leaf in jax.tree.leaves(carried))
    assert numbers_reduced(text) == values + 2  # loss and accuracy
    assert " while(" not in text  # on a CPU slots are unrolled; none hides in a loop


def numbers_reduced(text):
    """How many numbers the all-reduces of a compiled program carry in all."""
    results = re.findall(r" = (.*?) all-reduce(?:-start)?\(", text)
    shapes = [
        dims for result in results for dims in re.findall(r"\w\[([\d,]*)\]", result)
    ]
    return sum(math.prod(int(n) for n in dims.split(",") if n) for dims in shapes)


def test_gradient_is_of_the_mean_loss_of_the_whole_batch(devices):
    """One plain SGD step against the gradient written out, with smoothed labels."""
    setup = make_setup(name="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0)
    batches = [make_batch(0, 8), make_batch(1, 8)]  # the first has rate 0
    state, metrics = run(setup, batches, devices, label_smoothing=0.1)

    def loss(params):
        logits = setup[0].apply({"params": params}, batches[1].images, train=False)
        log_p = jax.nn.log_softmax(logits)
        chosen = log_p[jnp.arange(8), batches[1].labels]
        return -(0.9 * chosen + 0.1 * log_p.mean(-1)).mean()

    first = start(setup).params
    value, grads = jax.jit(jax.value_and_grad(loss))(first)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    # Rate 0.5 at step 1 of a two-step warm-up. Sums in another order: 1e-5.
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(
            new - old, -0.5 * g, rtol=0, atol=1e-5 * np.abs(g).max() + 1e-7
        ),
        state.params,
        first,
        grads,
    )


def test_layer_stats_are_norms_of_the_mean_gradient_over_all_slots(devices):
    """At rate 0 one device without slots gives the gradient; λ is the paper's rule."""
    setup = make_setup(name="lars", weight_decay=0.01, layers="all")
    batch = make_batch(0, 32)
    _, metrics = run(setup, [batch], devices[:2], accumulate=2)

    def loss(params):
        logits = setup[0].apply({"params": params}, batch.images, train=False)
        return -jax.nn.log_softmax(logits)[jnp.arange(32), batch.labels].mean()

    params = start(setup).params
    norms = [
        [np.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)]
        for tree in (params, jax.jit(jax.grad(loss))(params))
    ]
    w, g = np.array(norms)
    found = metrics["layers"]
    np.testing.assert_allclose(found.param_norm, w, rtol=1e-5)
    np.testing.assert_allclose(found.grad_norm, g, rtol=1e-4)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(w == 0, 0.02, 0.001 * w / (g + 0.01 * w))
    np.testing.assert_allclose(found.trust_ratio, ratio, rtol=1e-4)


def test_dropout_is_another_in_every_slot_and_step(devices):
    """The same two images in each slot, at rate 0: only dropout can differ."""
    model, tx, stats = setup = make_setup(TINY, name="sgd", learning_rate=0.0)
    step = partial(train_step, model=model, tx=tx, layer_stats=stats, axis_name=None)
    half = make_batch(0, 2)
    whole = Batch(*(np.concatenate([x] * 2) for x in half[:2]))
    state, one_slot = start(setup), jax.jit(step)
    state_1, first = one_slot(state, half)
    assert one_slot(state, half)[1]["loss"] == first["loss"]
    assert abs(one_slot(state_1, half)[1]["loss"] - first["loss"]) > 1e-4
    _, both = jax.jit(partial(step, accumulate=2))(state, whole)
    assert abs(both["loss"] - first["loss"]) > 1e-4


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was(devices):
    setup = make_setup("alexnet-bn-small", name="lars")
    model, tx, stats = setup
    step = partial(train_step, model=model, tx=tx, layer_stats=stats)
    step = engine.parallelize(step, devices)
    state, _ = step(engine.replicate(start(setup), devices), make_batch(0, 16))
    params = dict(state.params)
    params["fc2"] = {**params["fc2"], "bias": jnp.full(10, jnp.inf)}
    broken = state._replace(params=params)
    after, metrics = step(broken, make_batch(1, 16))
    assert not np.isfinite(metrics["loss"])
    assert not after.finite
    # Nor does an update of good numbers change anything after it.
    again, metrics = step(after._replace(params=state.params), make_batch(1, 16))
    assert np.isfinite(metrics["loss"])
    whole = np.array(True)
    jax.tree.map(np.testing.assert_array_equal, after._replace(finite=whole), broken)
    jax.tree.map(np.testing.assert_array_equal, again._replace(finite=whole), state)


def first_conv_moments(kernel, images):
    """Mean and variance over the images of what conv1 gives, in float64."""
    activations = jax.lax.conv_general_dilated(
        (images.astype(np.float32) - 128.0) / 74.0,
        kernel,
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    activations = np.asarray(activations, np.float64)
    return activations.mean((0, 1, 2)), activations.var((0, 1, 2))


def test_batch_stats_are_those_of_the_whole_batch_and_age(devices):
    """conv1 sees no normalisation, so its moments over 32 images are exact to check."""
    setup = make_setup("alexnet-bn-small", name="sgd", learning_rate=0.0)
    # Images that differ much between the slots: the case that mean(var) gets wrong.
    scale = np.repeat(np.linspace(0.1, 1.0, 8), 4)[:, None, None, None]
    batches = [make_batch(seed, 32) for seed in range(2)]
    batches = [b._replace(images=(b.images * scale).astype(np.uint8)) for b in batches]
    kernel = start(setup).params["conv1"]["kernel"]
    options = {"accumulate": 2, "solvers": 2}
    one, two = (
        run(setup, batches[:k], devices[:2], **options)[0].batch_stats["bn1"]
        for k in (1, 2)
    )
    for i, name in enumerate(("mean", "var")):
        first, second = (first_conv_moments(kernel, b.images)[i] for b in batches)
        # The first batch is copied, the next ages it; float32 sums of 1,152 values.
        np.testing.assert_allclose(one[name], first, rtol=1e-5, atol=1e-6)
        aged = 0.9 * first + 0.1 * second
        np.testing.assert_allclose(two[name], aged, rtol=1e-5, atol=1e-6)


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


def test_top5_counts_the_five_largest_logits():
    class Fixed(nn.Module):
        def __call__(self, images, *, train):
            return -jnp.arange(20.0).reshape(2, 10) * jnp.array([[1.0], [-1.0]])

    class Given:
        params, batch_stats = {}, {}

    images, mask = np.zeros((2, 1, 1, 1), np.uint8), np.ones(2, bool)
    for first, second, expected in [(0, 19, (2, 2)), (4, 5, (0, 2)), (5, 4, (0, 0))]:
        labels = np.array([first, second % 10], np.int32)
        batch = Batch(images, labels, mask)
        sums = eval_step(Given, batch, model=Fixed(), axis_name=None)
        assert (sums["correct"], sums["top5"]) == expected


@pytest.mark.parametrize("network", ["alexnet-small", "alexnet-bn-small"])
def test_masked_rows_do_not_count(network, devices):
    setup = make_setup(network, name="sgd")
    model, state = setup[0], start(setup)
    evaluate = engine.parallelize(partial(eval_step, model=model), devices)
    whole = make_batch(0, 16)
    mask = np.arange(16) < 11
    sums = jax.device_get(evaluate(state, whole._replace(mask=mask)))
    short = Batch(whole.images[:11], whole.labels[:11], np.ones(11, bool))
    plain = jax.jit(partial(eval_step, model=model, axis_name=None))
    expected = jax.device_get(plain(state, short))
    assert sums["count"] == expected["count"] == 11
    assert sums["correct"] == expected["correct"]
    assert sums["top5"] == expected["top5"]
    np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)


def test_copies_that_differ_are_named(devices):
    mesh = Mesh(np.asarray(devices), ("batch",))
    replicated = NamedSharding(mesh, PartitionSpec())
    state = TrainState(*(jax.device_put(jnp.arange(3.0), replicated) for _ in range(6)))
    engine.assert_replicated(state)
    copies = [
        jax.device_put(jnp.arange(3.0) + (i == 2), d) for i, d in enumerate(devices)
    ]
    drifted = jax.make_array_from_single_device_arrays((3,), replicated, copies)
    with pytest.raises(RuntimeError, match="params"):
        engine.assert_replicated(state._replace(params=drifted))


def test_networks_are_shaped_like_alexnet_and_its_bn_sibling():
    for network, leaves in (("alexnet-small", 10), ("alexnet-bn-small", 13)):
        setup = make_setup(network, name="sgd")
        state = jax.eval_shape(partial(start, setup, (28, 28, 1)))
        assert len(jax.tree.leaves(state.params)) == leaves
        assert state.params["conv1"]["kernel"].shape == (5, 5, 1, 8)
        assert state.params["fc1"]["kernel"].shape == (7 * 7 * 16, 64)
        assert bool(state.batch_stats) == ("bn" in network)
    with pytest.raises(ValueError, match="alexnet-small"):
        make_model("lenet", classes=10, width=1.0, pixel_mean=0.0, pixel_std=1.0)
