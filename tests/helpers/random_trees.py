"""Random trees of parameters and gradients, for the laws of test_properties.py."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compat import enable_x64
from hypothesis import HealthCheck, configuration, settings
from hypothesis import strategies as st

import lars_optax

EXAMPLES = 30  # of each law
SLOW = [HealthCheck.too_slow]  # the first case of a shape compiles
RULES = {"derandomize": True, "database": None, "suppress_health_check": SLOW}
LAWS = settings(max_examples=EXAMPLES, deadline=None, **RULES)
settings.register_profile("laws", LAWS)
settings.register_profile("thorough", LAWS, max_examples=20 * EXAMPLES)
# Where it keeps the constants of imported modules: not in a folder of its own.
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "hypothesis"
configuration.set_hypothesis_home_dir(CACHE)
if settings.get_current_profile_name() != "thorough":
    settings.load_profile("laws")

HUGE = (300, 300)
SHAPES = [(), (4,), (3, 2, 2)]
SINGLE = ["float16", "bfloat16", "float32", "complex64"]
# Half a unit in the last place of an update.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float64": 2**-53}
# Below these, updates are float16's subnormals, or an element of 1e-30's: see `reals`.
FLOOR = {"float16": 2**-24, "float64": 1e-29}


class Leaf(NamedTuple):
    w: np.ndarray
    g: np.ndarray
    decayed: bool
    adapted: bool


@st.composite
def arrays(draw, shape, dtype, kinds, exponents):
    """m·2ᵏ with one k for the array and a few m = 0, ±1/64, …, ±2, repeated."""
    kind = draw(st.sampled_from(kinds))
    low, high = (max(exponents[0], -8), 8) if dtype == "float16" else exponents
    size = int(np.prod(shape))
    high = min(high, 61 - size.bit_length() // 2)  # norms up to 2⁶³
    mantissas = draw(st.lists(st.integers(-128, 128), min_size=3, max_size=5))
    scale = 2.0 ** draw(st.integers(low, high)) / 64
    flat = np.resize(mantissas, max(2 * size, 1))[: 2 * size] * scale
    if kind == "zero":
        flat = 0 * flat
    elif kind == "tiny":
        flat[:1] = draw(st.sampled_from([1e-30, 1e-40]))
    flat = flat[:size] + 1j * flat[size:] if "complex" in dtype else flat[:size]
    return flat.reshape(shape).astype(jnp.dtype(dtype))


@st.composite
def leaves(draw, x64=False, shapes=None, kinds=("plain", "plain", "zero", "tiny"),
           exponents=(-47, 60)):  # fmt: skip
    """A leaf in range; the gradients of half and complex ones may be float32."""
    if shapes is None:
        huge = draw(st.integers(0, 15)) == 15
        shapes = [HUGE] if huge else [*SHAPES, (0,), (2, 0)]
    shape = draw(st.sampled_from(shapes))
    dtype = "float64" if x64 else draw(st.sampled_from(SINGLE))
    other = "float64" if x64 else "float32"
    w = draw(arrays(shape, dtype, kinds, exponents))
    g = draw(arrays(shape, draw(st.sampled_from([dtype, other])), kinds, exponents))
    return Leaf(w, g, draw(st.booleans()), draw(st.integers(0, 3)) > 0)


@st.composite
def trees(draw, **options):
    x64 = draw(st.integers(0, 3)) == 3
    return draw(st.dictionaries(st.sampled_from("abcdef"), leaves(x64, **options),
                                min_size=3, max_size=4))  # fmt: skip


NUMBERS = st.builds(  # exact in float32, from 2⁻¹⁰ to 1
    lambda m, e: m * 2.0 ** (e - 7), st.integers(64, 128), st.integers(-9, 0)
)
OPTIONS = st.fixed_dictionaries({
    "weight_decay": st.just(0.0) | NUMBERS,
    "trust_coefficient": NUMBERS,
    "eps": st.just(0.0) | NUMBERS,
    "denominator": st.sampled_from(["separate", "joint"]),
    "fallback_ratio": st.sampled_from([0.0, 1.0]) | NUMBERS,
})  # fmt: skip


def is_x64(tree):
    return any(leaf.w.dtype == np.float64 for leaf in tree.values())


def columns(tree):
    """The fields of the leaves, each as a tree."""
    return tuple({k: leaf[i] for k, leaf in tree.items()} for i in range(4))


def updates_of(tree, options, **more):
    w, g, decayed, adapted = columns(tree)
    masks = {"weight_decay_mask": decayed, "trust_ratio_mask": adapted}
    tx = lars_optax.scale_by_lars(**masks, **options, **more)
    with enable_x64(is_x64(tree)):
        w, g = jax.tree.map(jnp.asarray, (w, g))
        return jax.device_get(tx.update(g, tx.init(w), w)[0])


def reals(x):
    """In float64, complex as pairs; 0 for elements whose squares are 0 in float32."""
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return np.stack([reals(x.real), reals(x.imag)])
    wide = x.astype(np.float64)
    return wide if x.dtype == np.float64 else np.where(abs(wide) < 1e-25, 0, wide)


def norm(x):
    return np.sqrt(np.sum(np.square(x)))


def tolerance(w):
    """The dtype's rounding, and those of two sums of n squares; relative."""
    unit = 2**-53 if w.dtype == np.float64 else 2**-24
    return ROUNDING.get(w.dtype.name, unit) + 2 * (reals(w).size + 16) * unit


def largest(dtype):
    return float(jnp.finfo(dtype).max) * (1 - 2**-7)


def same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)  # NaN equals NaN


def in_numbers(leaf, options):
    """w, g, g + βw and β of one leaf, in float64."""
    beta = options["weight_decay"] if leaf.decayed else 0.0
    w, g = np.broadcast_arrays(*map(reals, (leaf.w, leaf.g.astype(leaf.w.dtype)
        if np.iscomplexobj(leaf.w) else leaf.g)))  # fmt: skip
    return w, g, g + beta * w, beta


def has_ratio(leaf, options):
    w, g, step, _ = in_numbers(leaf, options)
    return leaf.adapted and norm(w) > 0 and (
        norm(step if options["denominator"] == "joint" else g) > 0
    )  # fmt: skip


WILD = st.sampled_from([0.0, -0.0, 1.0, -3.0, 1e-30, 1e-40, 1e18, np.inf, np.nan])


@st.composite
def wild_leaves(draw):
    """A parameter and its gradient, of any values; either may be None."""
    shape = draw(st.sampled_from([*SHAPES, (0,), (2, 0)]))
    dtype = jnp.dtype(draw(st.sampled_from([*SINGLE, "float64"])))
    with np.errstate(over="ignore"):
        w, g = (
            np.resize(draw(st.lists(WILD, min_size=1, max_size=3)), max(1, size))[:size]
            .astype(dtype).reshape(shape) for size in 2 * [int(np.prod(shape))]
        )  # fmt: skip
    absent = draw(st.integers(0, 5))
    return None if absent == 5 else w, None if absent >= 4 else g
