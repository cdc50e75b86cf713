"""Laws of stacked layers as frameworks make them: each trains as it does by itself."""

from functools import cache, partial, reduce

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from networks import KEY, named_leaves
from reference import Lars
from trees import assert_equal, assert_refused, train_step

import lars_optax

pytestmark = pytest.mark.usefixtures("for_gpu")

LAYERS, INPUTS, WIDTH, CLASSES = 3, 5, 4, 2
RATE = optax.exponential_decay(0.05, 1, 0.6)
RULE = {"weight_decay": 0.02, "trust_coefficient": 0.3}
PREFIX = {"embed": None, "blocks": 0, "head": None}
TOLERANCE = 2e-6  # of a leaf's largest value: float32's rounding over the steps
BATCHES = jax.random.normal(KEY, (4, 8, INPUTS + CLASSES))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(WIDTH)(nn.relu(nn.LayerNorm()(x))), None


class LinenNet(nn.Module):
    """Its blocks are stacked on `axis`, or apart where that is None."""

    axis: int | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="embed")(x)
        if self.axis is None:
            for i in range(LAYERS):
                x, _ = Block(name=f"block{i}")(x)
        else:
            axes, split = {"params": self.axis}, {"params": True}
            blocks = nn.scan(Block, axes, split_rngs=split, length=LAYERS)
            x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(CLASSES, name="head")(x)


def nnx_block(rngs):
    norm = nnx.LayerNorm(WIDTH, rngs=rngs)
    return nnx.Sequential(norm, nnx.relu, nnx.Linear(WIDTH, WIDTH, rngs=rngs))


class NnxNet(nnx.Module):
    """Its blocks are stacked by `nnx.vmap`, or a list."""

    def __init__(self, stacked):
        self.stacked, rngs = stacked, nnx.Rngs(0)
        stack = nnx.split_rngs(splits=LAYERS)(nnx.vmap(nnx_block))
        self.blocks = stack(rngs) if stacked else nnx.List(map(nnx_block, [rngs] * 3))
        self.embed = nnx.Linear(INPUTS, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        def add(x, block):
            return x + block(x)

        scan = nnx.scan(add, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        loop = scan if self.stacked else lambda x, blocks: reduce(add, blocks, x)
        return self.head(loop(self.embed(x), self.blocks))


def grads_of(apply):
    def loss(params, batch):
        return ((apply(params, batch[:, :INPUTS]) - batch[:, INPUTS:]) ** 2).mean()

    return jax.grad(loss)


def linen_grads(net):
    return grads_of(lambda params, x: net.apply({"params": params}, x))


def take(tree, axis):
    slices = [partial(np.take, indices=i, axis=axis) for i in range(LAYERS)]
    return [jax.tree.map(f, jax.device_get(tree)) for f in slices]


@cache
def linen_scan(axis):
    def cut(tree, axis=axis):
        blocks = {f"block{i}": x for i, x in enumerate(take(tree["blocks"], axis))}
        return {"embed": tree["embed"], "head": tree["head"]} | blocks

    net, axes = LinenNet(axis), PREFIX | {"blocks": axis}
    params = jax.jit(net.init)(KEY, BATCHES[0, :, :INPUTS])["params"]
    return params, linen_grads(net), cut, linen_grads(LinenNet()), axes


@cache
def nnx_scan():
    def cut(tree, axis=0):
        blocks = nnx.State(dict(enumerate(take(tree["blocks"], axis))))
        return nnx.State({**tree, "blocks": blocks})

    def split(stacked):
        definition, params = nnx.split(NnxNet(stacked), nnx.Param)
        return params, grads_of(lambda params, x: nnx.merge(definition, params)(x))

    return *split(stacked=True), cut, split(stacked=False)[1], PREFIX


def ensemble():
    """Nets made by vmap; in the second the last layer is zero."""

    def cut(tree, axis=0):
        return dict(enumerate(take(tree, axis)))

    def grads_apart(params, batch):
        return {i: grads(member, batch) for i, member in params.items()}

    net = nn.Sequential([nn.Dense(WIDTH), nn.LayerNorm(), nn.relu, nn.Dense(CLASSES)])
    grads, init = linen_grads(net), jax.jit(jax.vmap(net.init, (0, None)))
    params = init(jax.random.split(KEY, LAYERS), BATCHES[0, :, :INPUTS])["params"]
    params["layers_3"]["kernel"] = params["layers_3"]["kernel"].at[1].set(0.0)
    return params, jax.vmap(grads, (0, None)), cut, grads_apart, 0


# Each: stacked parameters, gradients, how to cut a tree, gradients apart, axes.
CASES = {f"linen_axis_{axis}": partial(linen_scan, axis) for axis in (0, 1, -1)}
CASES |= {"nnx": nnx_scan, "ensemble": ensemble}


def train(optimizer, params, grads_at, axes=None):
    """Gradients, statistics of the layers and parameters of each step."""
    tx = optimizer(RATE, **RULE, stacked_axes=axes, keep_layer_stats=True)

    @jax.jit
    def step(params, state, batch):
        grads = grads_at(params, batch)
        params, state = train_step(tx)(grads, state, params)
        return (grads, optax.tree.get(state, "layer_stats"), params), state

    state = tx.init(params)
    for batch in BATCHES:
        found, state = step(params, state, batch)
        params = found[-1]
        yield found


@pytest.mark.parametrize("name", CASES)
def test_each_layer_trains_as_it_does_apart(name):
    make = lars_optax.larc if name == "linen_axis_1" else lars_optax.lars
    params, grads, cut, grads_apart, axes = CASES[name]()
    stacked = train(make, params, grads, axes)
    apart = train(make, cut(params), grads_apart)
    layers = named_leaves(cut(params))
    weights = [path for path in layers if path.endswith("kernel")]
    book = Lars(layers, decayed=weights, adapted=weights, beta=0.02, eta=0.3)
    for count, (step, alone) in enumerate(zip(stacked, apart, strict=True)):
        grads, stats, params = cut(step[0]), cut(step[1], 0), cut(step[2])
        assert_equal((grads, stats, params), alone, TOLERANCE)
        if make is lars_optax.lars:
            expected = book.step(named_leaves(grads), float(RATE(count)))
            assert_equal(named_leaves(params), expected, TOLERANCE)
        if name == "ensemble" and count == 0:  # ‖w‖ = 0 in one
            ratios = step[1]["layers_3"]["kernel"].trust_ratio
            assert [x == np.float32(0.02) for x in ratios] == [False, True, False]


@pytest.mark.parametrize("name", ["linen_axis_-1", "nnx"])
def test_stacked_biases_and_scales_are_no_weights_though_of_rank_2(name):
    params, *_, axes = CASES[name]()
    mask = lars_optax.exclude_bias_and_norm(params, stacked_axes=axes)
    by_rank = named_leaves(jax.tree.map(lambda x: x.ndim > 1, params))
    found = named_leaves(mask).items()
    wrong = [path.split("/")[-1] for path, weight in found if weight < by_rank[path]]
    assert sorted(wrong) == ["bias", "bias", "scale"]
    table = partial(lars_optax.describe_mask, params=params, stacked_axes=axes)
    assert table("exclude_bias_and_norm") == table(mask)


def test_axes_of_an_nnx_state_are_a_dict_a_state_or_an_int():
    params, *_ = nnx_scan()
    stats = partial(lars_optax.layer_stats, params, params)
    expected = stats(stacked_axes=PREFIX)
    assert_equal(stats(stacked_axes=nnx.State(PREFIX)), expected)
    stats = partial(lars_optax.layer_stats, params["blocks"], params["blocks"])
    assert_equal(stats(stacked_axes=0), expected["blocks"])


@pytest.mark.parametrize("name", ["linen_axis_1", "nnx", "ensemble"])
def test_axes_may_be_a_function_of_the_parameters(name):
    params, *_, axes = CASES[name]()
    some = isinstance(axes, dict)
    pattern, axis = ("^blocks/", axes["blocks"]) if some else ("", axes)

    def by_path(params):
        stacked = lars_optax.match_paths(pattern)(params)
        return jax.tree.map(lambda yes: axis if yes else None, stacked)

    def results(axes):
        yield lars_optax.exclude_bias_and_norm(params, stacked_axes=axes)
        yield lars_optax.layer_stats(params, params, stacked_axes=axes)
        for tx in (
            lars_optax.lars(RATE, **RULE, stacked_axes=axes),
            lars_optax.larc(RATE, **RULE, stacked_axes=axes),
            lars_optax.scale_by_lars(**RULE, stacked_axes=axes, keep_layer_stats=True),
        ):
            yield tx.update(params, tx.init(params), params)

    assert_equal(list(results(by_path)), list(results(axes)))


@pytest.mark.parametrize(("axes", "message"), [
    (0, r"lengths are 3 at 'blocks/\S+, .* 5 at 'embed/kernel'"),
    (-3, r"-3 for 'blocks/layers/0/bias', which has shape \(3, 4\)"),
    ({"block": 0, "embed": None, "head": None}, "not cover 'blocks/layers/0/bias'"),
])  # fmt: skip
def test_axes_that_do_not_fit_the_net_name_its_paths(axes, message):
    params, *_ = nnx_scan()
    stats = partial(lars_optax.layer_stats, params, params)
    assert_refused(f"stacked_axes.*{message}", stats, stacked_axes=axes)
