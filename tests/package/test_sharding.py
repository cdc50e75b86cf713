"""Laws of sharding: wherever the pieces of a layer lie, its norms are the whole's.

After each of four steps of momentum and decay at a changing rate, both parameters and
momentum equal those of the float64 reference, to 2e-6 of a layer's largest value. ε is
far from 0: else norms summed over axes that replicate a leaf would cancel in its ratio.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compat import shard_map
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from reference import Lars
from trees import assert_equal, learning_rate, train_step, update

import lars_optax
from lars_optax._axes import resolve_axis_names

pytestmark = pytest.mark.usefixtures("for_gpu")

XY = ("x", "y")
MESH = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), XY)
# Shape and stacking axis; where it lies: every way at once, FSDP, tensor parallelism.
LEAVES = {
    "full": ((8, 4), None, P("x", "y"), P(XY), P("x", None)),
    "rows": ((4, 3), None, P(("y", "x")), P(XY), P("x")),
    "cols": ((3, 8), None, P(None, "x"), P(None, XY), P(None, "x")),
    "kept": ((3, 3), None, P(), P(), P()),
    "stack": ((2, 4, 3), 0, P(None, "x"), P(None, XY), P(None, "x")),
    "own": ((4, 3, 2), 0, P("x", None, "y"), P(XY), P("x")),
    "bias": ((8,), None, P("x"), P(XY), P("x")),
    "scale": ((), None, P(), P(), P()),
}
SHAPES, STACKED, MIXED, FSDP, TENSOR = (
    {name: row[i] for name, row in LEAVES.items()} for i in range(5)
)
WHOLE = dict.fromkeys(LEAVES, P())

ETA, BETA, EPS, FALLBACK = 0.02, 0.1, 0.5, 0.02
OPTIONS = {"trust_coefficient": ETA, "eps": EPS, "fallback_ratio": FALLBACK}
KINDS = {  # ours, and the reference's order of momentum and denominator
    "lars": (lars_optax.lars, "scaled", "separate"),
    "joint": (lars_optax.lars, "scaled", "joint"),
    "larc": (lars_optax.larc, "unscaled", "separate"),
}

in_shard_map = partial(shard_map, mesh=MESH)
replicated = partial(jax.tree.map, lambda _: P())
momentum = partial(optax.tree.get, key="trace")
types = partial(jax.tree.map, jax.typeof)
# No leaf begins with an axis of length 1. Norms that are sliced out of an array do.
reshapes_a_leaf = re.compile(r"stablehlo\.reshape.*<(?!1x)\d+x\d+x").search


def draw(seed):
    """Pieces of a leaf have unlike norms, some none."""
    rng = np.random.default_rng(seed)
    tree = {k: rng.normal(size=s) * rng.gamma(1, size=s) for k, s in SHAPES.items()}
    tree["full"][4 * (seed % 2) :][:4] = 0
    return {k: np.asarray(x, np.float32) for k, x in tree.items()}


PARAMS, *GRADS = (draw(seed) for seed in range(5))


def optimizer(kind, **where):
    make, _, denominator = KINDS[kind]
    return make(learning_rate, BETA, denominator=denominator, **OPTIONS, **where)


def layers(tree):
    """Whole layers by name, in NumPy."""
    slices = {k: [("", x)] if STACKED[k] is None else enumerate(x)
              for k, x in jax.device_get(tree).items()}  # fmt: skip
    return {f"{k}{i}": layer for k, pairs in slices.items() for i, layer in pairs}


def follow(kind, step, state, params, grads=GRADS, layers=layers, loss_grad=None):
    """Take and compare the steps; return their end and what the last was taken from."""
    weights = [k for k in layers(params) if k not in ("bias", "scale")]
    oracle = Lars(
        layers(params), decayed=weights, adapted=weights, order=KINDS[kind][1],
        beta=BETA, eta=ETA, eps=EPS, denominator=KINDS[kind][2], fallback=FALLBACK,
    )  # fmt: skip
    for count, g in enumerate(grads):
        rate, before = float(learning_rate(count)), dict(oracle.params)
        if kind == "larc":
            oracle.eta = ETA / rate  # min(λ/γ, 1) is λ/γ in every layer here
        params, state = jax.block_until_ready(step(g, state, params))
        g = loss_grad(before) if loss_grad else layers(g)
        assert_equal(layers(params), oracle.step(g, rate), rtol=2e-6)
        buffer = {k: a if kind == "larc" else -a for k, a in oracle.buffer.items()}
        assert_equal(layers(momentum(state)), buffer, rtol=2e-6)
    return state, params, (before, g)


def on_mesh(specs):
    return jax.tree.map(lambda spec: NamedSharding(MESH, spec), specs)


def lies(tree, specs):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(on_mesh(specs)), strict=True)
    return all(x.sharding.is_equivalent_to(place, x.ndim) for x, place in pairs)


def exchanged(compiled):
    """The operation and shape, "8,4", of every array that the devices exchange."""
    operation = r" = (.+?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\("
    found = re.findall(operation, compiled.as_text())
    return [(name, x) for types, name in found for x in re.findall(r"\[(.*?)\]", types)]


# "own" is summed over y too, but is another on each device of x.
OWN_BESIDE = MIXED | {"cols": P(None, "y")}


@pytest.mark.parametrize(
    ("kind", "specs"), [*((kind, MIXED) for kind in KINDS), ("lars", OWN_BESIDE)],
    ids=[*KINDS, "own_layers_beside"],
)  # fmt: skip
def test_steps_in_shard_map_equal_the_reference(kind, specs):
    where = {"stacked_axes": STACKED, "axis_name": specs}
    tx = optimizer(kind, keep_layer_stats=True, **where)
    state, stats = tx.init(PARAMS), {k: P("x") if k == "own" else P() for k in LEAVES}
    places = specs, optax.tree.set(replicated(state), trace=specs, layer_stats=stats)
    step = in_shard_map(train_step(tx), in_specs=(*places, specs), out_specs=places)
    state, _, last = follow(kind, jax.jit(step), state, PARAMS)
    for i, tree in enumerate(last):  # recorded: ‖w‖ and ‖g‖ of the whole
        norms = {k: np.linalg.norm(x) for k, x in tree.items()}
        stats = {k: x[i] for k, x in optax.tree.get(state, "layer_stats").items()}
        assert_equal(layers(stats), norms, rtol=2e-6)


@pytest.mark.parametrize("axis_name", [
    "d", ("d",), {"own": P("d"), "kept": P(), "bias": P()}], ids=str)  # fmt: skip
def test_steps_in_pmap_equal_the_reference(axis_name):
    """A name sums over every weight; specs tell which are replicated."""
    names = axis_name if isinstance(axis_name, dict) else ("own", "bias")

    def spread(tree):
        return {k: tree[k] if k == "own" else np.stack([tree[k]] * 4) for k in names}

    def gather(tree):
        return {k: np.asarray(x if k == "own" else x[0]) for k, x in tree.items()}

    tx, params = optimizer("lars", axis_name=axis_name), spread(PARAMS)
    step, state = jax.pmap(train_step(tx), "d"), jax.pmap(tx.init)(params)
    follow("lars", step, state, params, map(spread, GRADS), gather)


@pytest.mark.parametrize("denominator", ["separate", "joint"])
@pytest.mark.parametrize(("places", "psums"), [
    ([P("x")], 1), ([P("x", "y"), P(XY), P(None, ("y", "x"))], 1),
    ([P("x"), P(None, "y"), P()], 2), ([P()], 0),
], ids=str)  # fmt: skip
def test_each_set_of_axes_has_one_psum(places, psums, denominator):
    """For both norms of twelve weights of two dtypes; a sharded bias needs none."""
    specs = {f"w{i}": places[i % len(places)] for i in range(12)} | {"bias": P("y")}
    params = {k: jnp.ones((8, 8)) for k in specs} | {"bias": jnp.ones(8)}
    params["w0"] = params["w0"].astype(jnp.bfloat16)
    tx = lars_optax.scale_by_lars(BETA, denominator=denominator, axis_name=specs)
    ins, outs = (specs, P(), specs), (specs, P())
    step = in_shard_map(train_step(tx), in_specs=ins, out_specs=outs)
    lowered = jax.jit(step).lower(params, tx.init(params), params)
    # Before and after the compiler, which may join what the package did not.
    assert len(re.findall(r"stablehlo\.all_reduce", lowered.as_text())) == psums
    assert [x for x, _ in exchanged(lowered.compile())] == ["all-reduce"] * psums
    assert not reshapes_a_leaf(lowered.as_text())


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="types name no mesh axis")
@pytest.mark.parametrize("kind", ["lars", "joint"])
def test_each_device_may_have_its_own_gradient_of_a_replicated_weight(kind):
    """‖w‖ is equal on all devices, although only the gradient of "rows" is."""
    params = {k: PARAMS[k] for k in ("full", "rows", "bias")}
    tx = optimizer(kind, keep_layer_stats=True)

    @jax.jit
    @in_shard_map(in_specs=(P(XY), P()), out_specs=(P(XY), P()))
    def step(scale, params):
        own = jax.tree.map(lambda w: (w + 1) * scale[0], params)
        grads = own | {"rows": jax.lax.pmean(own["rows"], XY)}
        updates, state = tx.update(grads, tx.init(params), params)
        norms = {
            k: x.param_norm for k, x in optax.tree.get(state, "layer_stats").items()
        }
        return jax.tree.map(lambda x: x[None], updates), norms

    updates, norms = step(jnp.arange(1.0, 5.0), params)
    assert_equal(norms, jax.tree.map(jnp.linalg.norm, params), rtol=2e-6)
    for i, found in enumerate(updates["full"]):
        grads = {
            k: (w + 1) * (2.5 if k == "rows" else i + 1) for k, w in params.items()
        }
        expected = update(optimizer(kind), grads, params)["full"]
        assert_equal(found, expected, rtol=2e-6)


@pytest.mark.parametrize("kind", ["lars", "joint"])
@pytest.mark.parametrize(("specs", "grads", "trace"), [
    (FSDP, FSDP, FSDP), (TENSOR, TENSOR, TENSOR),
    (WHOLE, WHOLE, FSDP), (WHOLE, FSDP, FSDP),
], ids=["fsdp", "tensor_parallel", "zero_1", "zero_2"])  # fmt: skip
def test_steps_in_jit_name_no_axis_and_gather_nothing(
    specs, grads, trace, kind, for_gpu
):
    """But ZeRO's new parameters, once each: whole, of a momentum in pieces."""
    tx, zero = optimizer(kind, stacked_axes=STACKED), specs is WHOLE
    grads = [jax.device_put(g, on_mesh(grads)) for g in GRADS]
    params = jax.device_put(PARAMS, on_mesh(specs))
    places = specs, optax.tree.set(replicated(tx.init(params)), trace=trace)
    out = on_mesh(places) if zero else (None, None)
    state = (jax.jit(tx.init, out_shardings=out[1]) if zero else tx.init)(params)
    assert lies(momentum(state), trace)
    lowered = jax.jit(train_step(tx), out_shardings=out).lower(grads[0], state, params)
    assert not reshapes_a_leaf(lowered.as_text())
    step = lowered.compile()
    state, params, _ = follow(kind, step, state, params, grads)
    assert lies((params, state), places)
    found = exchanged(step)
    for k, shape in SHAPES.items():
        if specs[k] != trace[k]:
            found.remove(("all-gather", ",".join(map(str, shape))))
    # The others are norms: a number for each leaf, or for each of its layers. In the
    # form for a GPU the two norms of a leaf are one array.
    numbers = ["", "1", "2", "4", *(["2,2"] if for_gpu else [])]
    assert set(found) <= {("all-reduce", number) for number in numbers}


def test_a_momentum_made_in_jit_lies_as_its_parameters_after_one_update():
    """Zeros depend on no argument: unless told, jax leaves them on one device."""
    tx, params = optimizer("lars"), jax.device_put(PARAMS, on_mesh(TENSOR))
    _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
    assert lies(momentum(state), TENSOR)


@pytest.fixture
def explicit():
    """Parameters on a mesh whose axes are part of the types of arrays."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("this jax has no jax.set_mesh")
    mesh = jax.make_mesh((2, 2), XY, axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield jax.device_put(PARAMS, TENSOR | {"full": P("x", "y"), "bias": P()})


@jax.jit
@jax.grad
def loss_grad(params):
    outputs = jnp.linspace(-1, 1, 15).reshape(5, 3) @ params["cols"] + params["bias"]
    return jnp.sum(outputs**2) + sum(jnp.sum((w - 1) ** 2) for w in params.values())


@pytest.mark.parametrize("kind", ["lars", "joint"])
@pytest.mark.parametrize("way", ["jit", "eager", "recorded"])
def test_steps_on_explicit_axes_keep_every_type(explicit, way, kind):
    names = ("cols", "bias", "own") if way == "eager" else LEAVES  # it compiles long
    params = {k: explicit[k] for k in names}
    stacked = {k: STACKED[k] for k in names}
    keeps = {"keep_layer_stats": way == "recorded"}
    tx = optimizer(kind, stacked_axes=stacked, **keeps)

    def step(_, old, params):
        updates, state = tx.update(loss_grad(params), old, params)
        assert types((updates, state)) == types((params, old))
        return optax.apply_updates(params, updates), state

    init, step = (x if way == "eager" else jax.jit(x) for x in (tx.init, step))
    state = init(params)
    assert types(momentum(state)) == types(params)
    follow(kind, step, state, params, loss_grad=loss_grad)


@pytest.mark.parametrize("axis_name", ["x", ("x",), {"free": P(None, "x")}], ids=str)
def test_an_unnamed_leaf_has_one_role_in_shard_map_and_outside(axis_name):
    """Its shard of shape (3, 1) is that of a weight, not of a vector."""
    params = {"free": jnp.asarray(np.arange(6.0).reshape(3, 2), jnp.float32)}
    tx = lars_optax.scale_by_lars(BETA, axis_name=axis_name, **OPTIONS)
    expected = update(lars_optax.scale_by_lars(BETA, **OPTIONS), params, params)
    specs = {"free": P(None, "x")}
    step = in_shard_map(lambda x: update(tx, x, x), in_specs=(specs,), out_specs=specs)
    found = step(params)
    assert_equal(jax.device_get(found), jax.device_get(expected), rtol=2e-6)


def test_a_bare_spec_is_a_spec_and_a_tuple_of_names_is_names():
    params, spec = {"kernel": jnp.ones((4, 4))}, P("x")
    # Each device has its own layers on a sharded stacking axis: nothing to sum.
    assert resolve_axis_names(spec, params, [0]) == [((), ("x",))]
    assert resolve_axis_names(spec, params, [None]) == [(("x",), ())]
    assert resolve_axis_names(("x", "y"), params, [0]) == [(("x", "y"), ())]
    pair = (params["kernel"], params["kernel"])
    for specs in ((spec, P()), [spec, P()]):
        names = resolve_axis_names(specs, type(specs)(pair), [None] * 2)
        assert names == [(("x",), ()), ((), ())]


@pytest.mark.parametrize("name", [
    "goyal-resnet50-sgd-8192", "mlperf-v1.0-resnet50-lars-8192"])  # fmt: skip
def test_a_recipe_decays_the_same_leaves_in_shard_map_and_outside(name):
    """A piece of the table has one row, so by its own shape it would be a bias."""
    recipe = lars_optax.recipes.get(name).replace(
        warmup_epochs=0, steps=None, weight_decay=0.5, momentum=0.0
    )
    params = {"table": jnp.ones((2, 8)), "w": jnp.ones((4, 4))}
    specs = {"table": P("x"), "w": P()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    whole = update(recipe.optimizer(10**6), zeros, params)
    tx = recipe.optimizer(10**6, axis_name=specs)
    step = in_shard_map(
        lambda g, w: update(tx, g, w), in_specs=(specs, specs), out_specs=specs
    )
    assert all(jnp.all(x < 0) for x in jax.tree.leaves(whole))
    assert_equal(step(zeros, params), whole)
