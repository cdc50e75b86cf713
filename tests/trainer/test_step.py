"""One update: the same on any devices, however a batch is cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from steps import (
    NORMED,
    ROUNDINGS,
    assert_params_close,
    make_batch,
    make_setup,
    run,
    start,
)

from examples.imagenet.step import devices as engine
from examples.imagenet.step.devices import AXIS
from examples.imagenet.step.step import (
    SOLVERS,
    train_step,
)

SGD = pytest.param({"algorithm": "sgd", "learning_rate": 0.1}, id="sgd")
LARS = pytest.param({"algorithm": "lars", "learning_rate": 20.0}, id="lars")


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


def test_synchronized_batch_norm_sees_the_whole_batch(devices):
    local = make_setup(NORMED, algorithm="sgd", learning_rate=0.1)
    together = local[0].clone(bn_axis_name=(AXIS, SOLVERS))
    sync = make_setup(together, algorithm="sgd", learning_rate=0.1)
    batches = [make_batch(seed, 32) for seed in range(3)]
    whole, _ = run(local, batches, devices[:1])
    for n, options in [(4, {}), (2, {"solvers": 2, "name": "shard_map"})]:
        other, _ = run(sync, batches, devices[:n], **options)
        assert_params_close(other.params, whole.params, 3e-5)  # BatchNorm magnifies
        assert_params_close(other.batch_stats, whole.batch_stats, 3e-5)
    apart, _ = run(local, batches, devices)
    with pytest.raises(AssertionError):
        assert_params_close(apart.params, whole.params, 3e-5)


def test_gradient_is_of_the_mean_loss_of_the_whole_batch(devices):
    """One plain SGD step against the gradient written out, with smoothed labels."""
    setup = make_setup(algorithm="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0)
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
    setup = make_setup(algorithm="lars", weight_decay=0.01, layers="all")
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


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was(devices):
    setup = make_setup(NORMED, algorithm="lars")
    model, tx, stats = setup
    step = partial(train_step, model=model, tx=tx, layer_stats=stats)
    step = engine.parallelize(step, devices)
    state, _ = step(engine.replicate(start(setup), devices), make_batch(0, 16))
    params = dict(state.params)
    params["fc"] = {**params["fc"], "bias": jnp.full(10, jnp.inf)}
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


def conv_moments(kernel, images):
    """Mean and variance over the images of what the convolution gives, in float64."""
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
    """conv sees no normalisation, so its moments over 32 images are exact to check."""
    setup = make_setup(NORMED, algorithm="sgd", learning_rate=0.0)
    # Images that differ much between the slots: the case that mean(var) gets wrong.
    scale = np.repeat(np.linspace(0.1, 1.0, 8), 4)[:, None, None, None]
    batches = [make_batch(seed, 32) for seed in range(2)]
    batches = [b._replace(images=(b.images * scale).astype(np.uint8)) for b in batches]
    kernel = start(setup).params["conv"]["kernel"]
    options = {"accumulate": 2, "solvers": 2}
    one, two = (
        run(setup, batches[:k], devices[:2], **options)[0].batch_stats["bn"]
        for k in (1, 2)
    )
    for i, name in enumerate(("mean", "var")):
        first, second = (conv_moments(kernel, b.images)[i] for b in batches)
        # The first batch is copied, the next ages it; float32 sums of 1,152 values.
        np.testing.assert_allclose(one[name], first, rtol=1e-5, atol=1e-6)
        aged = 0.9 * first + 0.1 * second
        np.testing.assert_allclose(two[name], aged, rtol=1e-5, atol=1e-6)
