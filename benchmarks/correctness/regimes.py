"""Compares the updates of `optax.lars` and `lars_optax.lars` with LARS in float64.

    python -m benchmarks.correctness.regimes

Each row of the table is a situation, such as a dtype, a sharding or a mask. Both
optimizers have momentum and the trust ratio λ = η‖w‖ / ‖g + βw‖, unless the row says
otherwise. benchmarks/correctness/oracle.py computes the same rule in float64, layer by
layer, at the parameters that each optimizer has reached. A number in the table is the
largest error of an update over leaves and steps, as a share of the largest element of
the right update. Exits with an error if `lars_optax.lars` is wrong in a row that it
should get right. Takes half a minute and writes benchmarks/results/regimes.json. The
page docs/compared.md has two tables of these rows: where `optax.lars` is wrong, and
what it lacks.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lars_optax
from benchmarks.correctness import oracle
from benchmarks.correctness.masks import networks
from benchmarks.correctness.oracle import LAYER, MASKS, Row, both, compare, make
from benchmarks.results import COMPARED, RESULTS, Record, Table, markdown, save

FLOAT16 = (  # regime, shape, scales of w and g, β, what happens
    ("float16, gradients of about 1", (512, 512), 0.05, 1, oracle.BETA,
     "In `optax.lars` ‖g‖ overflows, and λ is 0."),
    ("float16, gradients of about 1e-5, β = 0", (8, 8), 0.05, 1e-5, 0,
     "In `optax.lars` ‖g‖ underflows, and λ is 1."),
)  # fmt: skip


def placement() -> Iterator[Row]:
    grow = np.outer(np.arange(1, 9), np.arange(1, 9)) / 16  # shards of unlike norms
    full, partly = ((8, 8), 0.1 * grow, 3 * grow), ((8, 8), 10 * grow, grow)
    case = make(full=full, partly=partly, replicated=LAYER)
    specs = {"full": PartitionSpec(("x", "y")), "partly": PartitionSpec(None, "y"),
             "replicated": PartitionSpec()}  # fmt: skip
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    yield compare("replicated, float32", case)
    note = "`optax.lars` takes the norm of a shard. "
    note += "Here `axis_name` is the tree of `PartitionSpec`."
    ins, outs = (specs, [specs] * oracle.STEPS), [(specs, specs)] * oracle.STEPS
    wrap = partial(jax.shard_map, mesh=mesh, in_specs=ins, out_specs=outs)
    yield compare("sharded in `shard_map`", case, note, wrap=wrap, axis_name=specs)
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    grads = [jax.device_put(g, place) for g in case.grads]
    laid = case._replace(params=jax.device_put(case.params, place), grads=grads)
    yield compare("sharded by `jit`, `NamedSharding`", laid)
    norms = np.array([0.03, 0.1, 0.3, 1.0]).reshape(4, 1, 1)
    case = make(kernel=((4, 16, 16), norms, 1.0))._replace(stacked=True)
    note = "`optax.lars` has one λ for all four. Here `stacked_axes` is 0."
    regime = "4 stacked layers, whose norms differ by a factor of up to 33"
    yield compare(regime, case, note, stacked_axes=0)


def dtypes() -> Iterator[Row]:
    for regime, shape, w, g, decay, note in FLOAT16:
        case = make("float16", kernel=(shape, w, g))._replace(decay=decay)
        yield compare(regime, case, note, 2e-3)
    wide = 'Here `accumulator_dtype` is "float32". `optax.lars` has no such argument.'
    case = make("float16", kernel=((512, 512), 1e-4, 1e-4))
    regime = "float16, w and g of about 1e-4"
    note = "`optax.lars` rounds λ(g + βw), about 1e-7, to float16 and then applies γ."
    yield compare(regime, case, note, 0.02)
    regime += ", momentum in float32"
    yield compare(regime, case, wide, 0.01, accumulator_dtype="float32")
    case = make("bfloat16", kernel=((512, 512), 0.05, 1.0))
    yield compare("bfloat16", case, "Both round the update and the momentum.", 0.02)
    regime = "bfloat16, momentum in float32"
    yield compare(regime, case, wide, 4e-3, accumulator_dtype="float32")
    yield compare("complex64", make("complex64", kernel=LAYER))
    jax.config.update("jax_enable_x64", True)
    yield compare("float64", make("float64", kernel=LAYER), "", 1e-14)
    jax.config.update("jax_enable_x64", False)


def rules() -> Iterator[Row]:
    """Yields table rows for variants of LARS that `optax.lars` has no argument for.

    In these rows the figures of `optax.lars` are those of the only rule that it has.
    """
    near = make(kernel=LAYER)._replace(denominator="separate")
    cancels = -0.9 * oracle.BETA * near.params["kernel"]
    for grads in near.grads:  # as at a stationary point of the loss with decay
        grads["kernel"] = cancels + 1e-5 * grads["kernel"]
    note = (
        "g and βw nearly cancel, so ‖g + βw‖ is small and λ of `optax.lars` is large."
    )
    regime = "the paper's denominator, g ≈ −0.9 βw"
    yield compare(regime, near, note, denominator="separate", shown_in="lacks")
    case, rate = make(kernel=LAYER), optax.scale_by_learning_rate(oracle.RATE)
    scale = partial(lars_optax.scale_by_lars, trust_ratio_mask=True)
    joint = scale(oracle.BETA, True, oracle.ETA, denominator="joint")
    trace, decay = optax.trace(oracle.MU), optax.add_decayed_weights(oracle.BETA)
    unscaled = optax.chain(joint, trace, rate)
    post = optax.chain(decay, trace, scale(denominator="joint"), rate)
    note = "Here this is a chain. `optax.lars` has one order."
    for regime, order, chain in (
        ("falling learning rate after the momentum, as in BYOL", "unscaled", unscaled),
        ("λ after the momentum, as in SimCLR without `classic_momentum`", "post", post),
    ):
        pair, other = (both(case)[0], chain), case._replace(order=order)
        yield compare(regime, other, note, pair=pair, shown_in="lacks")
    options: Any = dict.fromkeys(MASKS, True) | {"denominator": "joint"}
    options |= {"trust_coefficient": oracle.ETA, "keep_layer_stats": True}
    keeps = lars_optax.lars(oracle.RATE, oracle.BETA, **options)
    states = [
        tx.update(case.grads[0], tx.init(case.params), case.params)[1]
        for tx in (both(case)[0], keeps)
    ]
    found, stats = (optax.tree.get(state, "layer_stats") for state in states)
    w, g = (np.asarray(x["kernel"], float) for x in (case.params, case.grads[0]))
    right = float(oracle.ratio(w, g, oracle.BETA, "joint"))
    ours = abs(float(stats["kernel"].trust_ratio) / right - 1)
    theirs = "none" if found is None else str(found)
    note = "Here `keep_layer_stats` is True."
    yield Row("each layer's λ in the state", theirs, ours, note, "lacks", ours < 1e-6)


def _excluded() -> oracle.Case:
    """Returns a case in which the scale and the bias have no trust ratio."""
    case = make(kernel=LAYER, scale=((32,), 0, 1), bias=((32,), 0, 1))
    return case._replace(excluded=("scale", "bias"), momentum=0.0)


def default_masks() -> Iterator[Row]:
    case = _excluded()
    names: Any = dict.fromkeys(MASKS, "exclude_bias_and_norm")
    seen = oracle.train(both(case)[0], case.params, case.grads)
    pairs = zip(seen, case.grads, strict=True)
    rates = (oracle.norm(u["scale"]) / oracle.norm(g["scale"]) for (_, u), g in pairs)
    shown = ", ".join(show(float(x / oracle.RATE(i))) for i, x in enumerate(rates))
    note = "Here λ is 1 for a scale that starts at 0. In `optax.lars` it is "
    note += f"{shown} in the first updates."
    regime = "default masks, biases and norm parameters with `fallback_ratio=1.0`"
    yield compare(regime, case, note, **names)


def injected_masks() -> Iterator[Row]:
    """Yields table rows for masks under `optax.inject_hyperparams`."""
    case, inject = _excluded(), optax.inject_hyperparams
    same = {"learning_rate": oracle.RATE, "weight_decay": oracle.BETA, "momentum": 0.0}
    joint = same | {"denominator": "joint", "fallback_ratio": 1.0}
    by_rank = dict.fromkeys(MASKS, partial(jax.tree.map, lambda x: x.ndim > 1))
    theirs, ours = inject(optax.lars), inject(lars_optax.lars)
    silent, loud = theirs(**same | by_rank), ours(**joint | by_rank)
    sgd = oracle.error(silent, case._replace(excluded=tuple(case.params)))
    note = (
        f"`optax.lars` computes the updates of SGD, up to {show(sgd)}, without an "
        "error."
    )
    cells = (oracle.error(silent, case), oracle.error(loud, case))
    refuses = cells[1] == "raises ValueError"
    yield Row("callable masks, `inject_hyperparams`", *cells, note, "wrong", refuses)
    yield compare(
        "default masks, `inject_hyperparams`",
        case,
        "As without `inject_hyperparams`.",
        pair=(theirs(**same), ours(**joint)),
        shown_in="",
    )
    static_theirs, static_ours = (
        inject(optax.lars, MASKS),
        inject(lars_optax.lars, MASKS),
    )
    yield compare(
        "callable masks in the `static_args` of `inject_hyperparams`",
        case,
        pair=(static_theirs(**same | by_rank), static_ours(**joint | by_rank)),
    )


def frameworks() -> Iterator[Row]:
    """Yields a table row about the default masks on Haiku's ResNet-50.

    It counts the biases and normalisation parameters that get a trust ratio. Haiku
    names weights w, so these are the adapted leaves with any other name.
    """
    params = networks()["Haiku `hk.nets.ResNet50`"]

    def wrong(mask: Any) -> int:
        flat = jax.tree_util.tree_leaves_with_path(mask)
        return sum(yes and path[-1].key != "w" for path, yes in flat)

    rules = (lambda _: True, lambda x: x.ndim > 1)
    everything, by_rank = (wrong(jax.tree.map(rule, params)) for rule in rules)
    ours = wrong(lars_optax.exclude_bias_and_norm(params))
    regime = (
        "number of biases and norm parameters of Haiku's ResNet-50 that get a trust "
        "ratio by default"
    )
    note = (
        f"A mask of `x.ndim > 1` gives {by_rank} of them a trust ratio, because they "
        "have rank 4."
    )
    yield Row(regime, str(everything), str(ours), note, "wrong", ours == 0)


def infinities() -> Iterator[Row]:
    """Yields table rows for an infinite gradient and for a norm that overflows.

    Each row also says whether `optax.apply_if_finite` skips the step.
    """
    one, huge = make(kernel=LAYER), make(kernel=(*LAYER[:2], 1e25))
    one.grads[0]["kernel"] = one.grads[0]["kernel"].at[0, 0].set(jnp.inf)
    for regime, case in (("one infinite gradient", one), ("‖g‖² > 3e38", huge)):
        cells, skips, nans = [], 0, 0
        for tx in both(case):
            update = oracle.train(tx, case.params, case.grads[:1])[0][1]["kernel"]
            nans = int(np.sum(np.isnan(update)))
            cells.append(f"{int(np.sum(update == 0)):,} zeros, {nans:,} NaN of 2,048")
            guard = optax.apply_if_finite(tx, 3)
            start = guard.init(case.params)
            _, state = guard.update(case.grads[0], start, case.params)
            skips += int(state.total_notfinite)
        note = "Neither update can be used. Here NaN shows it. "
        note += "`optax.apply_if_finite`, which checks the gradients, skips "
        note += f"{('neither', 'one', 'both')[skips]}."
        yield Row(regime, cells[0], cells[1], note, "", nans == 2048)


def costs() -> Iterator[Row]:
    case = make(kernel=LAYER)._replace(momentum=0.0)
    for momentum in (None, 0.0):
        pair = both(case._replace(momentum=momentum))
        sizes = [optax.tree.size(tx.init(case.params)) for tx in pair]
        note = "The state has {:,} bytes in `optax.lars` and {:,} here."
        note = note.format(*(4 * size for size in sizes))
        yield compare(f"`momentum={momentum}`", case, note, pair=pair, shown_in="lacks")
    jitted = (jax.jit(partial(oracle.train, tx)) for tx in both(case))
    compiled = (f.lower(case.params, case.grads[:1]).compile() for f in jitted)
    theirs, ours = (str(x.as_text()).count(" reduce(") for x in compiled)
    note = "Two norms need two reductions."
    regime = "reductions in the compiled update of one layer"
    yield Row(regime, theirs, ours, note, "lacks", ours == 2)


def show(cell: oracle.Cell) -> str:
    return cell if isinstance(cell, str) else f"{cell:.2g}"


def table(record: Record, shown_in: str | None = None) -> str:
    """Returns the comparison as a Markdown table.

    Without `shown_in` it has all rows. With "wrong" it has those where `optax.lars` is
    wrong, and with "lacks" those of features that `optax.lars` lacks.
    """
    return markdown(
        {
            "regime": row["regime"],
            "`optax.lars`": show(row["optax_lars"]),
            "`lars_optax.lars`": show(row["lars_optax"]),
            "what happens": row["what_happens"],
        }
        for row in record["rows"]
        if shown_in in (None, row["shown_in"])
    )


TABLES = (
    Table(COMPARED, "wrong", "regimes.json", partial(table, shown_in="wrong")),
    Table(COMPARED, "lacks", "regimes.json", partial(table, shown_in="lacks")),
    Table(RESULTS / "regimes.md", "all", "regimes.json", table),
)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    parts = (placement, dtypes, rules, default_masks, injected_masks, frameworks,
             infinities, costs)  # fmt: skip
    rows = [row._asdict() for part in parts for row in part()]
    print(table({"rows": rows}))
    if bad := [row["regime"] for row in rows if not row["ours_is_right"]]:
        raise SystemExit(f"lars_optax.lars is wrong in rows {bad}: correct it first")
    for row in rows:  # JSON has no NaN
        row |= {k: "nan" for k, x in row.items() if x != x}
    save("regimes.json", {"seed": 0, "steps": oracle.STEPS, "rows": rows})
    print("Run make report to put these results into the tables of docs/compared.md.")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
