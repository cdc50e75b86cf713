"""One update: the same on any devices, however a batch is cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs as runs
import steps
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from examples.imagenet.step import devices as engine
from examples.imagenet.step.devices import AXIS
from examples.imagenet.step.step import SOLVERS


@pytest.mark.parametrize(("algorithm", "rate"), [("sgd", 0.1), ("lars", 20.0)])
def test_every_split_of_a_batch_trains_as_one_device_does(algorithm, rate, devices):
    """A factor of the devices or slots in the gradient shows with SGD."""
    setup = steps.make_setup(algorithm=algorithm, learning_rate=rate)
    batches = [steps.make_batch(seed, 32) for seed in range(5)]
    one, one_metrics = steps.run(setup, batches, devices[:1])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, params_of(setup))
    assert max(jax.tree.leaves(moved)) > 1e-3
    for n, options in [
        (4, {}),
        (4, {"name": "shard_map"}),
        (1, {"accumulate": 4}),
        (1, {"solvers": 2}),
        (2, {"accumulate": 2, "solvers": 2, "name": "shard_map"}),
    ]:
        other, metrics = steps.run(setup, batches, devices[:n], **options)
        assert other.step == 5
        steps.assert_params_close(other.params, one.params, steps.ROUNDINGS)
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(metrics[name], one_metrics[name], rtol=1e-5)
    sharded, _ = run_jit(setup, batches, devices)
    steps.assert_params_close(sharded.params, one.params, steps.ROUNDINGS)


def params_of(setup):
    return steps.start(setup).params


def norms(tree):
    return np.array([np.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)])


def run_jit(setup, batches, devices):
    """The whole batch is one array spread over the devices; the step does not know."""
    spread = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))
    step = jax.jit(steps.step_of(setup))
    state = engine.replicate(steps.start(setup), devices)
    for batch in jax.device_put(batches, spread):
        state, metrics = engine.one_in_flight(step(state, batch), devices)
    return jax.device_get((state, metrics))


def test_synchronized_batch_norm_sees_the_whole_batch(devices):
    local = steps.make_setup(steps.NORMED, algorithm="sgd", learning_rate=0.1)
    together = local[0].clone(bn_axis_name=(AXIS, SOLVERS))
    sync = steps.make_setup(together, algorithm="sgd", learning_rate=0.1)
    batches = [steps.make_batch(seed, 32) for seed in range(3)]
    whole, _ = steps.run(local, batches, devices[:1])
    close = partial(steps.assert_params_close, roundings=3e-5)  # BatchNorm magnifies
    for n, options in [(4, {}), (2, {"solvers": 2, "name": "shard_map"})]:
        other, _ = steps.run(sync, batches, devices[:n], **options)
        close(other.params, whole.params)
        close(other.batch_stats, whole.batch_stats)
    apart, _ = steps.run(local, batches, devices)
    with pytest.raises(AssertionError):
        close(apart.params, whole.params)


def loss_and_gradient(setup, batch, smoothing=0.0):
    """Of the mean over the batch at the first parameters, written out."""

    def loss(params):
        logits = setup[0].apply({"params": params}, batch.images, train=False)
        log_p = jax.nn.log_softmax(logits)
        chosen = log_p[jnp.arange(len(batch.labels)), batch.labels]
        return -((1 - smoothing) * chosen + smoothing * log_p.mean(-1)).mean()

    return jax.jit(jax.value_and_grad(loss))(params_of(setup))


def test_gradient_is_of_the_mean_loss_of_the_whole_batch(devices):
    """One plain SGD step against the gradient written out, with smoothed labels."""
    plain = {"learning_rate": 1.0, "weight_decay": 0.0, "momentum": 0}
    setup = steps.make_setup(algorithm="sgd", **plain)
    batches = [steps.make_batch(0, 8), steps.make_batch(1, 8)]  # the first has rate 0
    state, metrics = steps.run(setup, batches, devices, label_smoothing=0.1)
    loss, grads = loss_and_gradient(setup, batches[1], 0.1)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)

    def check(new, old, g):
        # Rate 0.5 at step 1 of a two-step warm-up. Sums in another order: 1e-5.
        error = np.abs(new - old + 0.5 * g).max()
        assert error <= 1e-5 * np.abs(g).max() + 1e-7

    jax.tree.map(check, state.params, params_of(setup), grads)


def test_layer_stats_are_norms_of_the_mean_gradient_over_all_slots(devices):
    """At rate 0 one device without slots gives the gradient; λ is the paper's rule."""
    setup = steps.make_setup(algorithm="lars", weight_decay=0.01, layers="all")
    batch = steps.make_batch(0, 32)
    _, metrics = steps.run(setup, [batch], devices[:2], accumulate=2)
    found, (_, grads) = metrics["layers"], loss_and_gradient(setup, batch)
    w, g = norms(params_of(setup)), norms(grads)
    np.testing.assert_allclose(found.param_norm, w, rtol=1e-5)
    np.testing.assert_allclose(found.grad_norm, g, rtol=1e-4)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(w == 0, 0.02, 0.001 * w / (g + 0.01 * w))
    np.testing.assert_allclose(found.trust_ratio, ratio, rtol=1e-4)


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was(devices):
    setup = steps.make_setup(steps.NORMED, algorithm="lars")
    step = engine.parallelize(steps.step_of(setup), devices)
    first = engine.replicate(steps.start(setup), devices)
    state, _ = step(first, steps.make_batch(0, 16))
    lost = state.params["fc"] | {"bias": jnp.full(10, jnp.inf)}
    broken = state._replace(params=state.params | {"fc": lost})
    after, metrics = step(broken, steps.make_batch(1, 16))
    assert not np.isfinite(metrics["loss"])
    assert not after.finite
    # Nor does an update of good numbers change anything after it.
    again, metrics = step(after._replace(params=state.params), steps.make_batch(1, 16))
    assert np.isfinite(metrics["loss"])
    whole = np.array(True)
    jax.tree.map(np.testing.assert_array_equal, after._replace(finite=whole), broken)
    jax.tree.map(np.testing.assert_array_equal, again._replace(finite=whole), state)


def conv_moments(kernel, images):
    """Mean and variance over the images of what the convolution gives, in float64."""
    images = (images.astype(np.float32) - 128.0) / 74.0
    form = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    found = jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", **form)
    activations = np.asarray(found, np.float64)
    return activations.mean((0, 1, 2)), activations.var((0, 1, 2))


def test_batch_stats_are_those_of_the_whole_batch_and_age(devices):
    """conv sees no normalisation, so its moments over 32 images are exact to check."""
    setup = steps.make_setup(steps.NORMED, algorithm="sgd", learning_rate=0.0)
    # Images that differ much between the slots: the case that mean(var) gets wrong.
    scale = np.repeat(np.linspace(0.1, 1.0, 8), 4)[:, None, None, None]
    batches = [steps.make_batch(seed, 32) for seed in range(2)]
    batches = [b._replace(images=(b.images * scale).astype(np.uint8)) for b in batches]
    kernel = params_of(setup)["conv"]["kernel"]
    run = partial(steps.run, setup, devices=devices[:2], accumulate=2, solvers=2)
    one, two = (run(batches[:k])[0].batch_stats["bn"] for k in (1, 2))
    for i, name in enumerate(("mean", "var")):
        first, second = (conv_moments(kernel, b.images)[i] for b in batches)
        # The first batch is copied, the next ages it; float32 sums of 1,152 values.
        np.testing.assert_allclose(one[name], first, rtol=1e-5, atol=1e-6)
        aged = 0.9 * first + 0.1 * second
        np.testing.assert_allclose(two[name], aged, rtol=1e-5, atol=1e-6)


def test_a_trust_ratio_that_is_not_finite_stops_the_updates():
    """As when a norm of weights before BatchNorm overflows: the loss stays finite."""
    model, tx, stats = steps.make_setup()

    def overflowed(grads, params):
        found = stats(grads, params)
        kernel = found["fc"]["kernel"]._replace(trust_ratio=jnp.nan)
        return found | {"fc": found["fc"] | {"kernel": kernel}}

    setup = model, tx, overflowed
    state, batch = steps.start(setup), steps.make_batch(0, 8)
    new, metrics = jax.jit(steps.step_of(setup))(state, batch)
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    runs.assert_equal(new._replace(finite=state.finite), state)
