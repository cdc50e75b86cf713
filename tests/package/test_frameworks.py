"""Law: one net trains alike in every framework, and as the float64 rule has it."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compat import enable_x64
from flax import nnx
from networks import KEY
from reference import Lars
from sklearn.datasets import load_digits
from trees import assert_equal, assert_refused

import lars_optax

STEPS, CHANNELS, PIXELS = 20, 8, 6 * 6  # of what the convolution gives
RATE = optax.linear_schedule(0.3, 0.0, STEPS)
BETA, ETA = 1e-3, 0.05
TOLERANCE = 2e-5  # of the largest value: float32's rounding over the steps
MLP = eqx.nn.MLP(2, 2, 4, 1, key=KEY)
arrays_of = functools.partial(eqx.filter, filter_spec=eqx.is_inexact_array)
DIGITS, RANDOM = load_digits(), np.random.default_rng(0)
IMAGES = np.float32(DIGITS.images[:256, :, :, None] / 16)
LABELS = DIGITS.target[:256]
SHAPES = {"conv/weight": (3, 3, 1, CHANNELS), "conv/bias": (CHANNELS,),
          "norm/weight": (CHANNELS,), "norm/bias": (CHANNELS,),
          "head/weight": (PIXELS * CHANNELS, 10), "head/bias": (10,)}  # fmt: skip
START = {
    name: np.float32(RANDOM.normal(name == "norm/weight", 0.1, shape))
    for name, shape in SHAPES.items()
}


def named(path):
    module, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")[:2]
    return f"{module}/{'bias' if name in ('bias', 'b', 'offset') else 'weight'}"


def fill(tree, out=-1):
    """A framework's tree with the leaves of `START`; `out` is its axis of outputs."""

    def value(path, x):
        return jnp.moveaxis(START[named(path)], -1, out).reshape(x.shape)

    return jax.tree_util.tree_map_with_path(value, tree)


def read(tree, out=-1):
    """The leaves of a framework's tree as `START` has them."""
    leaves = {named(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    return {
        name: np.moveaxis(x.reshape(np.moveaxis(START[name], -1, out).shape), out, -1)
        for name, x in leaves.items()
    }


def loss_of(logits):
    return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(len(LABELS)), LABELS])


OPTAX = (jax.jit, jax.value_and_grad, optax.apply_updates, lambda params: params)
EQUINOX = (eqx.filter_jit, eqx.filter_value_and_grad, eqx.apply_updates, arrays_of)


def train(tx, model, apply, tools=OPTAX, out=-1):
    """Loss before and weights after each step."""
    jit, value_and_grad, apply_updates, weights_of = tools

    @jit
    def step(model, state):
        loss, grads = value_and_grad(lambda model: loss_of(apply(model)))(model)
        updates, state = tx.update(grads, state, weights_of(model))
        return loss, apply_updates(model, updates), state

    state = tx.init(weights_of(model))
    for _ in range(STEPS):
        loss, model, state = step(model, state)
        yield loss, read(weights_of(model), out)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.Conv(CHANNELS, (3, 3), padding="VALID", name="conv")(x))
        x = nn.silu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


def linen(tx):
    net = LinenNet()
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(net.init, KEY, IMAGES))

    def apply(params):
        variables = zeros | {"params": params}
        return net.apply(variables, IMAGES, mutable="batch_stats")[0]

    return train(tx, fill(zeros["params"]), apply)


def haiku(tx):
    @hk.transform_with_state
    def net(x):
        x = jax.nn.silu(hk.Conv2D(CHANNELS, 3, padding="VALID", name="conv")(x))
        x = hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True)
        return hk.Linear(10, name="head")(hk.Flatten()(jax.nn.silu(x)))

    params, stats = jax.tree.map(jnp.zeros_like, jax.eval_shape(net.init, KEY, IMAGES))
    return train(tx, fill(params), lambda x: net.apply(x, stats, None, IMAGES)[0])


def plain_net(params, x):
    axes = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    kernel = params["conv/weight"]
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", **axes)
    x = jax.nn.silu(x + params["conv/bias"])
    x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    x = jax.nn.silu(x * params["norm/weight"] + params["norm/bias"])
    return x.reshape(len(x), -1) @ params["head/weight"] + params["head/bias"]


def plain(tx):
    return train(tx, fill(START), lambda params: plain_net(params, IMAGES))


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(1, CHANNELS, 3, key=key)
        self.norm = eqx.nn.BatchNorm(CHANNELS, "batch", mode="batch")
        self.head = eqx.nn.Linear(PIXELS * CHANNELS, 10, key=key)

    def __call__(self, x, stats):  # one image
        x = jax.nn.silu(self.conv(x.transpose(2, 0, 1)))
        x, _ = self.norm(x, stats)
        return self.head(jax.nn.silu(x).transpose(1, 2, 0).ravel())


def equinox(tx):
    model, stats = eqx.nn.make_with_state(EquinoxNet)(KEY)
    model = eqx.combine(fill(arrays_of(model), out=0), model)
    each = functools.partial(jax.vmap, in_axes=(0, None), axis_name="batch")
    return train(tx, model, lambda x: each(x)(IMAGES, stats), EQUINOX, out=0)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, CHANNELS, (3, 3), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(CHANNELS, rngs=rngs)
        self.head = nnx.Linear(PIXELS * CHANNELS, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.norm(nnx.silu(self.conv(x))))
        return self.head(x.reshape(len(x), -1))


def flax_nnx(tx):
    model = NnxNet(nnx.Rngs(0))
    nnx.update(model, fill(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: loss_of(model(IMAGES)))(model)
        optimizer.update(model, grads)
        return loss

    for _ in range(STEPS):
        yield step(model, optimizer), read(nnx.state(model, nnx.Param))


@functools.cache
def book():
    """Loss before and weights after each step of the float64 rule."""
    weights = ("conv/weight", "head/weight")
    lars = Lars(START, decayed=weights, adapted=weights, beta=BETA, eta=ETA)
    with enable_x64():
        images, history = np.float64(IMAGES), []
        step = jax.jit(jax.value_and_grad(lambda x: loss_of(plain_net(x, images))))
        for count in range(STEPS):
            loss, grads = step(lars.params)
            lars.step(grads, float(RATE(count)))
            history.append((float(loss), dict(lars.params)))
    return history


@pytest.mark.parametrize("framework", [linen, flax_nnx, haiku, equinox, plain])
def test_a_net_trains_as_the_book_has_it(framework):
    """Its weights are adapted and decayed, its biases and scales move by γg."""
    tx = lars_optax.lars(RATE, BETA, trust_coefficient=ETA)
    for step, expected in zip(framework(tx), book(), strict=True):
        assert_equal(step, expected, TOLERANCE)
    assert book()[-1][0] < book()[0][0] / 50


def test_nnx_optimizer_keeps_the_record_and_takes_masks_made_of_its_state():
    model = NnxNet(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    mask = lars_optax.exclude_bias_and_norm(params)
    masks = {"weight_decay_mask": mask, "trust_ratio_mask": mask}
    tx = lars_optax.lars(RATE, keep_layer_stats=True, **masks)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    expected = lars_optax.layer_stats(params, params)
    for _ in range(2):
        optimizer.update(model, nnx.state(model, nnx.Param))
        stats = optax.tree.get(nnx.as_pure(optimizer.opt_state), "layer_stats")
        assert jax.tree.structure(stats) == jax.tree.structure(expected)
    ratio = stats["head"]["kernel"].trust_ratio
    np.testing.assert_allclose(ratio, 0.001, rtol=1e-6)  # η‖w‖/‖g‖ and g = w
    rows = lars_optax.format_layer_stats(stats).splitlines()[1:3]
    assert [row.split()[0] for row in rows] == ["conv/bias", "conv/kernel"]


def test_a_dict_is_a_prefix_of_a_module_with_attributes_of_its_names():
    params = arrays_of(eqx.nn.make_with_state(EquinoxNet)(KEY)[0])
    prefix = {"conv": True, "norm": False, "head": {"weight": True, "bias": False}}
    table = lars_optax.describe_mask(prefix, params)
    chosen = [line.split()[-1] for line in table.splitlines()[:-1]]
    assert chosen == ["yes", "yes", "no", "no", "yes", "no"]
    more = prefix | {"body": True}
    assert_refused("nothing at 'body'", lars_optax.describe_mask, more, params)


@pytest.mark.parametrize("make", [lars_optax.lars, lars_optax.larc])
def test_an_equinox_module_is_updated_as_its_arrays_are(make):
    """Its functions have no gradient; `init` takes the arrays alone."""
    tx, arrays = make(0.5), arrays_of(MLP)
    assert_refused(r"'activation' is of type .*\.is_inexact_array", tx.init, MLP)
    grads = eqx.filter_grad(lambda net: jnp.sum(net(jnp.ones(2)) ** 2))(MLP)
    expected = tx.update(grads, tx.init(arrays), arrays)
    assert_equal(tx.update(grads, tx.init(arrays), MLP), expected)


def test_an_equinox_tree_of_axes_without_one_is_no_function():
    model = arrays_of(MLP)
    none = jax.tree.map(lambda _: None, model)
    stats = functools.partial(lars_optax.layer_stats, model, model)
    assert_equal(stats(stacked_axes=none), stats())


def test_a_module_that_holds_numbers_is_called_as_a_function():
    class Axis(eqx.Module):
        axis: int

        def __call__(self, params):
            return jax.tree.map(lambda _: self.axis, params)

    params = {"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones((3, 4))}
    stats = functools.partial(lars_optax.layer_stats, params, params)
    assert_equal(stats(stacked_axes=Axis(0)), stats(stacked_axes=0))
