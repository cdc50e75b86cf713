"""Published implementations replayed: ours equals theirs, and where not, by how much.

`vectors/*.npz` hold 25 steps of six leaves under a changing rate, recorded from timm,
pytorch_optimizer and solo-learn (PyTorch: the rate outside the momentum, "unscaled")
and from flax.optim (the rate inside it, "scaled", as in the paper);
`vectors/make_vectors.py` made them. All four put β‖w‖ in the denominator on its own.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compat import enable_x64
from trees import train_step

import lars_optax

VECTORS = Path(__file__).parent / "vectors"
# Float64 on both sides, the same formula in another order of operations: a few
# roundings of 1e-16 a step, 25 steps; 1.5e-15 was seen. A wrong rule shows at 1e-4 or
# more, and the tests of what differs hold it to that.
ROUNDING = 1e-13
DIFFERENT = 1e-4

ALL = {"weight_decay_mask": True, "trust_ratio_mask": True}
IDLE = "idle/kernel"  # its gradient is zero at steps 7, 8 and 16


def read(name, prefix):
    """The arrays of one file whose key starts with `prefix`, without it."""
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        keys = [key for key in file if key.startswith(prefix)]
        return {key.removeprefix(prefix): file[key] for key in keys}


def recorded(name, configuration):
    """Each leaf after every step, and the arguments the implementation was given."""
    about = json.loads(str(read(name, "about")[""]))
    leaves = read(name, f"{configuration}:")
    return leaves, about["configurations"][configuration]


def rate(scale=1.0):
    """The recorded learning rates as a schedule."""
    rates = scale * read("inputs", "learning_rates")[""]
    return lambda count: jnp.asarray(rates)[count]


def lars_unscaled(*, momentum=0.9, nesterov=False, before_trace=None, **options):
    """The chain of every PyTorch port: the rate comes after the momentum."""
    return optax.chain(
        lars_optax.scale_by_lars(**{"fallback_ratio": 1.0} | options),
        before_trace or optax.identity(),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(rate()),
    )


def replay(make_optimizer):
    """Each leaf after every step of the optimizer, from the recorded gradients."""
    with enable_x64(True):
        optimizer = make_optimizer()
        params = jax.tree.map(jnp.asarray, read("inputs", "params:"))
        grads = read("inputs", "grads:")
        update = train_step(optimizer)

        def step(carry, grads):
            params, state = carry
            params, state = update(grads, state, params)
            return (params, state), params

        scan = jax.jit(partial(jax.lax.scan, step))
        history = jax.device_get(scan((params, optimizer.init(params)), grads)[1])
    assert all(leaf.dtype == np.float64 for leaf in history.values())
    return history


def errors(ours, theirs):
    """Per leaf, the greatest difference at any step over that step's largest value."""

    def error(a, b):
        axes = tuple(range(1, b.ndim))
        return np.max(np.max(np.abs(a - b), axes) / np.max(np.abs(b), axes))

    assert ours.keys() == theirs.keys()
    return {leaf: float(error(ours[leaf], theirs[leaf])) for leaf in theirs}


def assert_same(ours, theirs, except_leaves=()):
    found = errors(ours, theirs)
    assert max(found[leaf] for leaf in found.keys() - except_leaves) < ROUNDING, found


def assert_differ(ours, theirs, leaves):
    found = errors(ours, theirs)
    assert min(found[leaf] for leaf in leaves) > DIFFERENT, found


# Each row: what was recorded, our options, and the fallback_ratio that stands for what
# the implementation does with the leaf without a gradient, where that is not 1.
DECAY = {"weight_decay": 0.01}
TIMM = SOLO = DECAY | {"eps": 1e-8}
ROWS = [
    # timm: the same denominator, the same λ = 1 with decay kept at a zero norm.
    ("timm", "decay", TIMM | ALL, None),
    ("timm", "nesterov", TIMM | ALL | {"nesterov": True}, None),
    ("timm", "no_momentum", TIMM | ALL | {"momentum": 0.0}, None),
    ("timm", "always_adapt", TIMM | ALL | {"weight_decay": 0.0}, None),
    # Its users leave biases and norms out with a group of weight_decay=0, which takes
    # plain SGD there. That is our default masks and fallback_ratio=1.
    ("timm", "two_groups", TIMM, None),
    # pytorch_optimizer leaves out what has one axis, here the leaves our default masks
    # leave out; it has no ε. Where g = 0 and w ≠ 0 its ratio is η‖w‖/(β‖w‖) = η/β: the
    # leaf moves by γηw where the authors' solver and we decay it by γβw.
    ("pytorch_optimizer", "decay", DECAY, 0.001 / 0.01),
    ("pytorch_optimizer", "nesterov", DECAY | {"nesterov": True}, 0.001 / 0.01),
    ("pytorch_optimizer", "no_momentum", DECAY | {"momentum": 0.0}, 0.001 / 0.01),
    ("pytorch_optimizer", "no_decay", {}, None),  # nothing to move: both agree
    # solo-learn drops the decay with the ratio at a zero norm. A leaf that is zero has
    # no decay to drop, so only the leaf without a gradient differs.
    ("solo_learn", "decay", SOLO | ALL, 0.0),
    ("solo_learn", "exclude_nesterov", SOLO | {"nesterov": True}, 0.0),
]


@pytest.mark.parametrize(
    ("source", "configuration", "options", "idle_ratio"), ROWS,
    ids=["-".join(row[:2]) for row in ROWS],
)  # fmt: skip
def test_unscaled_chain_equals(source, configuration, options, idle_ratio):
    theirs, arguments = recorded(source, configuration)
    assert arguments.get("weight_decay", 0.0) == options.get("weight_decay", 0.0)
    ours = replay(lambda: lars_unscaled(**options))
    if idle_ratio is None:
        assert_same(ours, theirs)
        return
    assert_same(ours, theirs, except_leaves=[IDLE])
    assert_differ(ours, theirs, [IDLE])
    its_rule = replay(lambda: lars_unscaled(fallback_ratio=idle_ratio, **options))
    assert errors(its_rule, theirs)[IDLE] < ROUNDING


FLAX = {"decay": DECAY, "nesterov": DECAY | {"eps": 1e-3, "nesterov": True},
        "no_decay": {}}  # fmt: skip


@pytest.mark.parametrize("configuration", FLAX)
def test_lars_itself_equals_flax(configuration):
    """The paper's order, λ = 1 with decay kept at a zero norm: no difference found."""
    options = FLAX[configuration]
    theirs, arguments = recorded("flax", configuration)
    assert arguments.get("eps", 0.0) == options.get("eps", 0.0)
    ours = replay(lambda: lars_optax.lars(rate(), **ALL, **options, fallback_ratio=1.0))
    assert_same(ours, theirs)


def test_timm_without_decay_is_plain_sgd_and_ours_is_not():
    """weight_decay=0 turns its ratio off unless always_adapt is set; ours stays on."""
    theirs, _ = recorded("timm", "no_decay")
    assert_same(replay(lambda: optax.sgd(rate(), momentum=0.9)), theirs)
    ours = replay(lambda: lars_unscaled(**ALL))
    assert_differ(ours, theirs, ["conv/kernel", "dense/kernel", "dense/bias", IDLE])


def test_dampening_is_a_factor_before_the_trace():
    """buffer = μ·buffer + (1−d)·u. PyTorch's first buffer, so timm's, is u itself;
    pytorch_optimizer's is zero, so that its first step is dampened too."""

    def damped(first, **options):
        factor = optax.scale_by_schedule(lambda t: jnp.where(t == 0, first, 0.7))
        return replay(lambda: lars_unscaled(before_trace=factor, **options))

    theirs, arguments = recorded("timm", "dampening")
    assert arguments["dampening"] == 0.3
    assert_same(damped(1.0, **TIMM, **ALL), theirs)
    assert_differ(damped(0.7, **TIMM, **ALL), theirs, theirs)
    theirs, _ = recorded("pytorch_optimizer", "dampening")
    assert_same(damped(0.7, **DECAY), theirs, except_leaves=[IDLE])
    its_rule = damped(0.7, fallback_ratio=0.001 / 0.01, **DECAY)
    assert errors(its_rule, theirs)[IDLE] < ROUNDING


@pytest.mark.parametrize("source", ["timm", "solo_learn"])
def test_clip_is_the_ratio_bounded_by_the_rate(source):
    """Both take min(λ/γ, 1). At a zero norm timm clips its λ = 1 as well, solo-learn
    passes the gradient as it is, without decay; one rule here, as γ < 1 throughout."""
    theirs, arguments = recorded(source, "trust_clip" if source == "timm" else "clip")
    gamma = rate(arguments["rate_scale"])

    def larc(fallback):
        scale = optax.inject_hyperparams(lars_optax.scale_by_lars)
        options = DECAY | ALL | {"trust_coefficient": 0.02, "eps": 1e-8}
        return optax.chain(
            # The bound does not apply to the fallback: γ there makes the factor 1.
            scale(max_ratio=gamma, fallback_ratio=fallback, **options),
            optax.scale_by_schedule(lambda t: 1 / gamma(t)),
            optax.trace(0.9),
            optax.scale_by_learning_rate(gamma),
        )

    dropped = [] if source == "timm" else [IDLE]
    assert_same(replay(lambda: larc(gamma)), theirs, except_leaves=dropped)
    if dropped:
        assert errors(replay(lambda: larc(0.0)), theirs)[IDLE] < ROUNDING


WRONG = {
    "scaled_momentum": lambda **options: lars_optax.lars(rate(), **options),
    "joint": partial(lars_unscaled, denominator="joint"),
    "nesterov": partial(lars_unscaled, nesterov=True),
    "eps": lambda **options: lars_unscaled(**options | {"eps": 0.1}),
    "sgd": lambda **_: optax.sgd(rate(), 0.9),
}


@pytest.mark.parametrize("rule", WRONG)
def test_another_rule_does_not_fit_the_vectors(rule):
    theirs, _ = recorded("timm", "decay")
    ours = replay(lambda: WRONG[rule](**TIMM, **ALL))
    assert_differ(ours, theirs, ["conv/kernel"])
