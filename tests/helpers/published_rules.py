"""The chain of this package and the schedule that equal each published rule.

    PYTHONPATH=. python tests/helpers/published_rules.py

prints the tables of docs/guides/published.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compat import enable_x64
from published import (
    IDLE,
    about,
    as_schedule,
    errors,
    recorded,
    recorded_rates,
    replay,
)
from published_recipes import recipe_lines

import lars_optax


def unscaled(rate, *, momentum=0.9, nesterov=False, before_trace=None, **options):
    """The chain of every PyTorch port: the rate comes after the momentum."""
    return optax.chain(
        lars_optax.scale_by_lars(**{"fallback_ratio": 1.0} | options),
        before_trace or optax.identity(),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(rate),
    )


def scaled(rate, **options):
    """`lars` itself: the rate comes before the momentum, as in the paper."""
    return lars_optax.lars(rate, **{"fallback_ratio": 1.0} | options)


def post(rate, *, weight_decay, nesterov=False, **options):
    """The trust ratio comes after the momentum and divides by the momentum's norm."""
    decay = optax.add_decayed_weights(weight_decay, lars_optax.exclude_bias_and_norm)
    return optax.chain(
        decay,
        optax.trace(0.9, nesterov),
        lars_optax.scale_by_lars(**{"fallback_ratio": 1.0} | options),
        optax.scale_by_learning_rate(rate),
    )


def bias_and_norm(params):
    return jax.tree.map(lambda kept: not kept, lars_optax.exclude_bias_and_norm(params))


def barlow_twins(rate, **options):
    """Biases and norm parameters have a rate of 0.0048, and weights one of 0.2."""
    slower = optax.masked(optax.scale(0.0048 / 0.2), bias_and_norm)
    return unscaled(rate, before_trace=slower, **options)


ALL = {"weight_decay_mask": True, "trust_ratio_mask": True}
# Each row: the file, the configuration, our chain, its options, and the fallback_ratio
# with which the chain equals the implementation on the leaf without a gradient. None
# means 1.
DECAY = {"weight_decay": 0.01}
TIMM = SOLO = DECAY | {"eps": 1e-8}
JOINT = {"denominator": "joint"}
NESTEROV = {"nesterov": True}
# nnabla's reference has its decay in float32.
NNABLA = {"weight_decay": float(np.float32(0.01))}
ROWS = [
    # timm has our denominator. At a zero norm it keeps the decay and has λ = 1.
    ("timm", "decay", unscaled, TIMM | ALL, None),
    ("timm", "nesterov", unscaled, TIMM | ALL | NESTEROV, None),
    ("timm", "no_momentum", unscaled, TIMM | ALL | {"momentum": 0.0}, None),
    ("timm", "always_adapt", unscaled, TIMM | ALL | {"weight_decay": 0.0}, None),
    # Users of timm put biases and norms into a group with weight_decay=0, where it is
    # plain SGD. Our default masks with fallback_ratio=1 do the same.
    ("timm", "two_groups", unscaled, TIMM, None),
    # pytorch_optimizer has no ε and leaves out leaves of one axis, which are the leaves
    # that our default masks leave out. Where g = 0 and w ≠ 0, its ratio is η‖w‖/(β‖w‖)
    # = η/β, so the leaf changes by γηw. The authors' solver and we change it by γβw.
    ("pytorch_optimizer", "decay", unscaled, DECAY, 0.001 / 0.01),
    ("pytorch_optimizer", "nesterov", unscaled, DECAY | NESTEROV, 0.001 / 0.01),
    ("pytorch_optimizer", "no_momentum", unscaled, DECAY | {"momentum": 0.0},
     0.001 / 0.01),
    # Without weight decay the leaf does not change at a zero gradient.
    ("pytorch_optimizer", "no_decay", unscaled, {}, None),
    # At a zero norm solo-learn leaves out the ratio and the decay. The decay of a leaf
    # that is zero is zero, so only the leaf without a gradient differs.
    ("solo_learn", "decay", unscaled, SOLO | ALL, 0.0),
    ("solo_learn", "exclude_nesterov", unscaled, SOLO | NESTEROV, 0.0),
    # flax has the paper's order. At a zero norm it keeps the decay and has λ = 1.
    ("flax", "decay", scaled, DECAY | ALL, None),
    ("flax", "nesterov", scaled, DECAY | ALL | NESTEROV | {"eps": 1e-3}, None),
    ("flax", "no_decay", scaled, ALL, None),
    # BYOL and the four rules after it have the joint denominator. Leaves of one axis
    # get no ratio and no decay.
    ("byol", "decay", unscaled, JOINT | DECAY, None),
    ("barlow_twins", "decay", barlow_twins, JOINT | DECAY, None),
    ("vicreg", "decay", unscaled, JOINT | DECAY, None),
    ("moco_v3", "decay", unscaled, JOINT | DECAY, None),
    ("mae", "no_decay", unscaled, JOINT, None),
    # apex, as SwAV uses it and with its own defaults. All leaves have a ratio. At a
    # zero norm it leaves out the ratio and the decay, as solo-learn does.
    ("apex", "swav", unscaled, DECAY | ALL | {"eps": 1e-8}, 0.0),
    ("apex", "clip", lars_optax.larc, DECAY | ALL, 0.0),
    ("simclr", "classic", scaled, JOINT | DECAY, None),
    ("simclr", "classic_nesterov", scaled, JOINT | DECAY | NESTEROV, None),
    ("simclr", "popular", post, JOINT | DECAY, None),
    ("simclr", "popular_nesterov", post, JOINT | DECAY | NESTEROV, None),
    # TensorFlow's skip_list leaves a variable without ratio and without decay.
    ("tf_contrib", "decay", scaled, DECAY | ALL, None),
    ("tf_contrib", "skip", scaled, DECAY, None),
    ("tf_contrib", "nesterov", scaled, DECAY | ALL | NESTEROV | {"eps": 1e-3}, None),
    # An ε of 0 becomes that of Keras.
    ("mlperf_keras", "skip", scaled, DECAY | {"eps": 1e-7}, None),
    ("torchlars", "decay", unscaled, TIMM | ALL, None),
    # nnabla's ratio at a zero gradient is that of pytorch_optimizer.
    ("nnabla", "decay", scaled, NNABLA | ALL, 0.001 / NNABLA["weight_decay"]),
]  # fmt: skip


def row_errors(source, configuration, chain, options, idle_ratio):
    """The errors of a row's chain, and of that chain with the row's `idle_ratio`.

    Both are dictionaries with the error of each leaf.
    """
    theirs, _ = recorded(source, configuration)
    rates = as_schedule(recorded_rates(source, configuration))
    found = errors(replay(lambda: chain(rates, **options)), theirs)
    if idle_ratio is None:
        return found, found
    options = options | {"fallback_ratio": idle_ratio}
    own = errors(replay(lambda: chain(rates, **options)), theirs)
    return found, own


def cosine(peak, end=0.0, steps=25):
    """Ten steps of warm-up from zero, then the cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, 10, steps, end * peak)


def by_256(rate, batch_size):
    return lars_optax.linear_scaling(rate, batch_size, 256)


def simclr(learning_rate, learning_rate_scaling, train_batch_size, **_):
    """The decay of SimCLR is one step longer than the run."""
    if learning_rate_scaling == "linear":
        return cosine(by_256(learning_rate, train_batch_size), steps=26)
    return cosine(lars_optax.sqrt_scaling(learning_rate, train_batch_size, 1), steps=26)


def swav(base_lr, start_warmup, final_lr, **_):
    """The last step of the warm-up and the first of the decay have the peak rate."""
    warmup = optax.linear_schedule(start_warmup, base_lr, 9)
    decay = optax.cosine_decay_schedule(base_lr, 15, final_lr / base_lr)
    return optax.join_schedules([warmup, decay], [10])


# source: a function from its arguments to its schedule, the tolerance, and the name of
# the schedule in the documentation.
FLOAT64, FLOAT32 = 1e-12, 1e-6
WARMUP_COSINE = "`optax.warmup_cosine_decay_schedule`"
SCHEDULES = {
    "byol": (lambda base_learning_rate, batch_size, **_:
             cosine(by_256(base_learning_rate, batch_size)), FLOAT32, WARMUP_COSINE),
    "barlow_twins": (lambda learning_rate_weights, batch_size, **_:
                     cosine(by_256(learning_rate_weights, batch_size), 1e-3), FLOAT64,
                     f"{WARMUP_COSINE} to 0.001 of the peak"),
    "vicreg": (lambda base_lr, batch_size, **_:
               cosine(by_256(base_lr, batch_size), 1e-3), FLOAT64,
               f"{WARMUP_COSINE} to 0.001 of the peak"),
    "moco_v3": (lambda lr, **_: cosine(lr), FLOAT64, WARMUP_COSINE),
    "mae": (lambda lr, **_: cosine(lr), FLOAT64, WARMUP_COSINE),
    "apex": (swav, FLOAT64, "`optax.linear_schedule`, `optax.cosine_decay_schedule`"),
    "simclr": (simclr, FLOAT32, f"{WARMUP_COSINE} of one more step"),
}  # fmt: skip


def schedule_error(source, configuration):
    """The largest difference of the rates at any step, divided by the peak."""
    theirs = recorded_rates(source, configuration)
    _, arguments = recorded(source, configuration)
    with enable_x64(True):
        schedule = SCHEDULES[source][0](**arguments)
        ours = np.asarray([schedule(jnp.asarray(t)) for t in range(len(theirs))])
    assert ours.dtype == np.float64
    return float(np.max(np.abs(ours - theirs)) / np.max(theirs))


NAMES = {
    scaled: "scaled",
    unscaled: "unscaled",
    barlow_twins: "unscaled",
    lars_optax.larc: "`larc`",
    post: "post",
}


def cells_of(file, *rule):
    """The cells of a line. The measured difference stands before the last two."""
    return file["repository"], *rule, file["commit"][:8], f"`{file['path']}`"


def with_difference(cells, error):
    return [*cells[:-2], f"{error:.0e}", *cells[-2:]]


def rules_table():
    """The rows that belong to each line of the first table, by the line's cells.

    The cells leave out the difference, which is measured.
    """
    lines = {}
    for row in ROWS:
        source, _, chain, options, _ = row
        rule = options.get("denominator", "separate"), NAMES[chain]
        cells = cells_of(about(source)["source"], *rule)
        lines.setdefault(cells, []).append(row)
    return lines


def schedules_table():
    """The recordings that belong to each line of the second table."""
    lines = {}
    for source, configuration, *_ in ROWS:
        if source in SCHEDULES:
            cells = cells_of(about(source)["schedule"], SCHEDULES[source][2])
            lines.setdefault(cells, []).append((source, configuration))
    return lines


def rule_error(row):
    """The largest error of any leaf, with the `idle_ratio` for the idle leaf."""
    found, own = row_errors(*row)
    return max((found | {IDLE: own[IDLE]}).values())


def main():
    """Print the three tables."""
    for cells, rows in rules_table().items():
        error = max(rule_error(row) for row in rows)
        print("|", " | ".join(with_difference(cells, error)), "|")
    for cells, recordings in schedules_table().items():
        error = max(schedule_error(*recording) for recording in recordings)
        print("|", " | ".join(with_difference(cells, error)), "|")
    for cells in recipe_lines():
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
