"""Where `optax.lars` and `lars_optax.lars` are right, each against double precision.

    python -m benchmarks.regimes

Both are set to one rule, λ = η‖w‖ / ‖g + βw‖ with momentum, and judged by a naive
float64 of it, layer by layer, at the parameters each has reached. A number is the
largest error of an update, as a share of the largest element its leaf should have, over
leaves and steps. Refuses to write where ours is off by more than its row allows. Takes
half a minute; writes benchmarks/results/regimes.json and, for the README, regimes.md.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lars_optax
from examples.imagenet.provenance import provenance

GAMMA, DROP, BETA, ETA, MU = 10.0, 0.5, 0.01, 0.001, 0.9
STEPS = 3
RATE = optax.exponential_decay(GAMMA, 1, DROP)  # it shows the momentum's order
MASKS = ("weight_decay_mask", "trust_ratio_mask")
LAYER = ((64, 32), 0.05, 1.0)  # shape, scale of w, scale of g
RESULTS = Path("benchmarks/results/regimes.json")

Tree = dict[str, Any]
Seen = list[tuple[Tree, Tree]]  # the parameters before each step, and its update
Cell = float | str
Row = tuple[str, Cell, Cell, str]  # the cells are measured, never typed in
FLOAT16 = (  # regime, shape, scales of w and g, β, what happens
    ("float16, gradients ~1", (512, 512), 0.05, 1, BETA, "`optax.lars`: λ = 0"),
    ("float16, gradients ~1e-5, β = 0", (8, 8), 0.05, 1e-5, 0, "`optax.lars`: λ = 1"),
    ("float16, w and g ~1e-4", (512, 512), 1e-4, 1e-4, BETA,
     "steps, 1e-7 before γ, are float16's last bits: ours needs the next row's buffer"),
)  # fmt: skip


class Case(NamedTuple):
    """Parameters, a gradient for each step, and what the oracle takes them for."""

    params: Tree
    grads: list[Tree]
    stacked: bool = False  # the slices of a leaf are layers
    excluded: tuple[str, ...] = ()  # leaves that take γg
    momentum: float | None = MU
    decay: float = BETA


def make(dtype: str = "float32", **leaves: tuple[Any, Any, Any]) -> Case:
    """Normal parameters and gradients: for each leaf its shape and their scales."""
    random = np.random.default_rng(0)

    def normal(shape: Any, scale: Any) -> jax.Array:
        x, y = random.normal(0, scale, (2, *shape))
        return jnp.asarray(x + 1j * y if dtype == "complex64" else x).astype(dtype)

    def draw(which: int) -> Tree:
        return {name: normal(leaf[0], leaf[which]) for name, leaf in leaves.items()}

    return Case(draw(1), [draw(2) for _ in range(STEPS)])


def right_updates(case: Case, seen: Seen) -> Iterator[Tree]:
    """What each layer's update should have been, at the parameters of its step."""
    buffer: Tree = {}
    for count, ((params, _), grads) in enumerate(zip(seen, case.grads, strict=True)):
        rate, gs = GAMMA * DROP**count, layers(grads, case)
        for name, w in layers(params, case).items():
            g = gs[name]
            step = rate * (g if name in case.excluded else layer_step(w, g, case.decay))
            buffer[name] = (case.momentum or 0) * buffer.get(name, 0) + step
        yield {name: -x for name, x in buffer.items()}


def layer_step(w: Any, g: Any, beta: float) -> Any:
    """λ(g + βw) of one layer; λ = 1 where a norm is zero."""
    step = g + beta * w
    norm_w, norm_step = (np.sqrt(np.sum(np.abs(x) ** 2)) for x in (w, step))
    return (ETA * norm_w / norm_step if norm_w and norm_step else 1.0) * step


def layers(tree: Tree, case: Case) -> Tree:
    """Each layer of a tree in double precision."""
    tree = {name: np.asarray(x) for name, x in tree.items()}
    wide = {k: x.astype(np.result_type(x, np.float64)) for k, x in tree.items()}
    if not case.stacked:
        return wide
    return {f"{k} {i}": x for k, leaf in wide.items() for i, x in enumerate(leaf)}


def train(tx: Any, params: Tree, grads: list[Tree]) -> Seen:
    state, seen = tx.init(params), []
    for g in grads:
        updates, state = tx.update(g, state, params)
        seen.append((params, updates))
        params = optax.apply_updates(params, updates)
    return seen


def error(tx: Any, case: Case, wrap: Any = None) -> Cell:
    """The largest error of its updates, or what it raises."""
    try:
        step = partial(train, tx)
        seen = jax.jit(wrap(step) if wrap else step)(case.params, case.grads)
    except Exception as raised:  # whatever it is, it is the result
        return f"raises {type(raised).__name__}"
    errors = []
    for (_, updates), right in zip(seen, right_updates(case, seen), strict=True):
        for name, x in layers(updates, case).items():
            errors.append(np.max(np.abs(x - right[name])) / np.max(np.abs(right[name])))
    return float(np.max(errors))


def both(case: Case, **only_ours: Any) -> tuple[Any, Any]:
    """`optax.lars` and ours with one meaning."""
    same = {"learning_rate": RATE, "weight_decay": case.decay}
    same |= {"momentum": case.momentum, "trust_coefficient": ETA}
    options = dict.fromkeys(MASKS, True) | {"denominator": "joint"} | only_ours
    return optax.lars(**same), lars_optax.lars(**same | options)


def compare(regime: str, case: Case, note: str = "", allowed: float = 1e-6,
            pair: Any = None, wrap: Any = None, **only_ours: Any) -> Row:  # fmt: skip
    pair = pair or both(case, **only_ours)
    theirs, ours = (error(tx, case, wrap) for tx in pair)
    if not (isinstance(ours, float) and ours <= allowed):
        raise SystemExit(f"ours: {ours}, more than {allowed}: {regime}")
    right = isinstance(theirs, float) and theirs <= allowed
    return regime, theirs, ours, note or ("both are right" if right else "")


def placement() -> Iterator[Row]:
    grow = np.outer(np.arange(1, 9), np.arange(1, 9)) / 16  # shards of unlike norms
    full, partly = ((8, 8), 0.1 * grow, 3 * grow), ((8, 8), 10 * grow, grow)
    case = make(full=full, partly=partly, replicated=LAYER)
    specs = {"full": PartitionSpec(("x", "y")), "partly": PartitionSpec(None, "y"),
             "replicated": PartitionSpec()}  # fmt: skip
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    yield compare("replicated, float32", case)
    note = "`optax.lars` takes a shard for a layer; ours has `axis_name` = the specs"
    ins, outs = (specs, [specs] * STEPS), [(specs, specs)] * STEPS
    wrap = partial(jax.shard_map, mesh=mesh, in_specs=ins, out_specs=outs)
    yield compare("sharded in `shard_map`", case, note, wrap=wrap, axis_name=specs)
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    grads = [jax.device_put(g, place) for g in case.grads]
    placed = case._replace(params=jax.device_put(case.params, place), grads=grads)
    yield compare("sharded by `jit`, `NamedSharding`", placed)
    norms = np.array([0.03, 0.1, 0.3, 1.0]).reshape(4, 1, 1)
    case = make(kernel=((4, 16, 16), norms, 1.0))._replace(stacked=True)
    note = "`optax.lars` has one ratio for all; ours has `stacked_axes=0`"
    yield compare("4 stacked layers, norms 1 to 33", case, note, stacked_axes=0)


def dtypes() -> Iterator[Row]:
    for regime, shape, w, g, decay, note in FLOAT16:
        case = make("float16", kernel=(shape, w, g))._replace(decay=decay)
        yield compare(regime, case, note, 0.2 if w == g else 2e-3)
    note = '`accumulator_dtype="float32"` in ours; `optax.lars` has none'
    wide: Any = {"accumulator_dtype": "float32"}
    regime = "the same, buffer in float32"
    yield compare(regime, case, note, 0.01, **wide)
    case = make("bfloat16", kernel=((512, 512), 0.05, 1.0))
    yield compare("bfloat16", case, "roundings of step and buffer prevail", 0.02)
    yield compare(regime, case, note, 4e-3, **wide)
    yield compare("complex64", make("complex64", kernel=LAYER))
    jax.config.update("jax_enable_x64", True)
    yield compare("float64", make("float64", kernel=LAYER), "", 1e-14)
    jax.config.update("jax_enable_x64", False)


def masks() -> Iterator[Row]:
    case = make(kernel=LAYER, scale=((32,), 0, 1), bias=((32,), 0, 1))
    case = case._replace(excluded=("scale", "bias"), momentum=0.0)
    names: Any = dict.fromkeys(MASKS, "exclude_bias_and_norm")
    seen = train(both(case)[0], case.params, case.grads)
    norm, pairs = np.linalg.norm, zip(seen, case.grads, strict=True)
    rates = (norm(u["scale"]) / norm(g["scale"]) for (_, u), g in pairs)
    shown = ", ".join(show(float(x) / GAMMA / DROP**i) for i, x in enumerate(rates))
    note = f"a norm's scale, 0 at first, has λ = {shown} in `optax.lars`, 1 in ours"
    yield compare("default masks; right: γg for bias and norm", case, note, **names)
    same = {"learning_rate": RATE, "weight_decay": BETA, "momentum": 0.0}
    joint = same | {"denominator": "joint"}
    by_rank = dict.fromkeys(MASKS, partial(jax.tree.map, lambda x: x.ndim > 1))
    inject = optax.inject_hyperparams
    theirs, ours = inject(optax.lars), inject(lars_optax.lars)
    silent, loud = theirs(**same | by_rank), ours(**joint | by_rank)
    sgd = error(silent, case._replace(excluded=tuple(case.params)))
    note = f"`optax.lars` has become SGD (to {show(sgd)}) in silence"
    cells = (error(silent, case), error(loud, case))
    yield ("callable masks, `inject_hyperparams`", *cells, note)
    pair = (theirs(**same), ours(**joint))
    yield compare("default masks, `inject_hyperparams`", case, "as without", pair=pair)
    theirs, ours = (inject(f, MASKS) for f in (optax.lars, lars_optax.lars))
    pair = (theirs(**same | by_rank), ours(**joint | by_rank))
    yield compare("callable masks in its `static_args`", case, pair=pair)


def infinities() -> Iterator[Row]:
    """What becomes of a layer's update, and whether `apply_if_finite` skips it."""
    one, huge = make(kernel=LAYER), make(kernel=(*LAYER[:2], 1e25))
    one.grads[0]["kernel"] = one.grads[0]["kernel"].at[0, 0].set(jnp.inf)
    for regime, case in (("one infinite gradient", one), ("‖g‖² > 3e38", huge)):
        cells, skips = [], 0
        for tx in both(case):
            update = train(tx, case.params, case.grads[:1])[0][1]["kernel"]
            counts = int(np.sum(update == 0)), int(np.sum(np.isnan(update)))
            cells.append("of 2,048: {:,} zero, {:,} NaN".format(*counts))
            guard = optax.apply_if_finite(tx, 3)
            start = guard.init(case.params)
            _, state = guard.update(case.grads[0], start, case.params)
            skips += int(state.total_notfinite)
        note = f"`apply_if_finite` checks gradients: it skips {skips} of these 2"
        yield regime, cells[0], cells[1], note


def costs() -> Iterator[Row]:
    case = make(kernel=LAYER)._replace(momentum=0.0)
    for momentum in (None, 0.0):
        pair = both(case._replace(momentum=momentum))
        sizes = [optax.tree.size(tx.init(case.params)) for tx in pair]
        note = "state: {:,} and {:,} bytes".format(*(4 * size for size in sizes))
        yield compare(f"`momentum={momentum}`", case, note, pair=pair)
    jitted = (jax.jit(partial(train, tx)) for tx in both(case))
    compiled = (f.lower(case.params, case.grads[:1]).compile() for f in jitted)
    theirs, ours = (str(x.as_text()).count(" reduce(") for x in compiled)
    yield "reductions in one layer's compiled update", theirs, ours, "two norms need 2"


def show(cell: Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell:.2g}"


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    rows = [*placement(), *dtypes(), *masks(), *infinities(), *costs()]
    lines = [["regime", "`optax.lars`", "`lars_optax.lars`", "what happens"]]
    lines += [["---"] * 4, *([show(x) for x in row] for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print(table)
    names = ("regime", "optax_lars", "lars_optax", "what_happens")
    cells = [(x if x == x else "nan" for x in row) for row in rows]  # JSON has no NaN
    found = [dict(zip(names, row, strict=True)) for row in cells]
    record = provenance() | {"seed": 0, "steps": STEPS, "rows": found}
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    RESULTS.with_suffix(".md").write_text(table)
    print(f"written: {RESULTS} and {RESULTS.with_suffix('.md')}")


if __name__ == "__main__":
    main()
