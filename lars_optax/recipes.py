"""The published hyperparameters of runs with LARS and SGD, as recipes.

The recipes are the rows of the LARS paper's Tables 1 to 3 and 5 to 7, Goyal et al.'s
run at a batch size of 8192, and MLPerf's ResNet-50 results with LARS. `names()` lists
them and `get(name)` returns one. `Recipe` describes the fields. If the authors' logs
contradict a printed learning rate, there are two recipes. One has the printed rate. The
other has the rate of the logs, and its name ends in "-corrected".
"""

import difflib
from typing import Any

from lars_optax._masks import BY_ROLE
from lars_optax._recipe import Recipe as Recipe

_PAPER = "You, Gitman and Ginsburg 2017, Table"
_SOLVER = "the authors' solver, nvcaffe-0.16 at c2e02b2c"
_INFERRED = {
    "end_learning_rate": "not printed; the poly rule ends at 0",
    "decay_from_start": f"{_SOLVER}: the polynomial begins at step 0",
    "momentum_order": f"{_SOLVER}: the learning rate is inside the momentum",
    "nesterov": f"{_SOLVER}: momentum without Nesterov",
    "mask": f"{_SOLVER}: the rule is the same for all leaves",
    "label_smoothing": f"not stated; none in {_SOLVER}",
}
_ZERO_NORM = {"fallback_ratio": f"{_SOLVER}: the ratio is 1 where a norm is zero"}
_START = {"warmup_start": f"1.0 in the LARS settings of {_SOLVER}"}


def _paper(
    table: int,
    network: str,
    algorithm: str,
    batch: int,
    suffix: str = "",
    inferred: dict[str, str] | None = None,
    **fields: Any,
) -> Recipe:
    name = f"paper-t{table}-{network}-{algorithm}-{batch}{suffix}"
    if algorithm == "lars":
        fields["fallback_ratio"] = 1.0
        inferred = _ZERO_NORM | (inferred or {})
    return Recipe(
        name=name,
        source=f"{_PAPER} {table}",
        network=network,
        algorithm=algorithm,
        batch_size=batch,
        inferred=_INFERRED | (inferred or {}),
        **fields,
    )


def _table1() -> list[Recipe]:
    common: dict[str, Any] = {"epochs": 90, "momentum": 0.9, "weight_decay": 1e-4}
    return [
        _paper(1, "resnet50", "sgd", 256, learning_rate=0.2, warmup_epochs=0,
               top1=0.730, **common,
               inferred={"warmup_epochs": "Table 7 prints N/A for the same run"}),
        _paper(1, "resnet50", "sgd", 8192, learning_rate=6.4, warmup_epochs=None,
               top1=0.727, **common,
               hints={"warmup_epochs": "5 in Goyal et al. (section 3.1) and in Table 7",
                      "warmup_start": "0.1 in Goyal et al. (section 3.1)"}),
    ]  # fmt: skip


def _table2() -> list[Recipe]:
    hints = {"momentum": "0.9 in Table 6", "weight_decay": "0.0005 in Table 6"}
    common: dict[str, Any] = {
        "epochs": 100, "momentum": None, "weight_decay": None, "hints": hints,
    }  # fmt: skip
    rows = {
        (4096, 2.5): {0.01: 0.510, 0.02: 0.527, 0.03: 0.520, 0.04: 0.530, 0.05: 0.531,
                      0.06: 0.516, 0.07: 0.001},
        (8192, 6): {0.02: 0.298, 0.03: 0.448, 0.04: 0.431, 0.05: 0.001},
    }  # fmt: skip
    return [
        _paper(2, "alexnet", "sgd", 512, learning_rate=0.02, warmup_epochs=0,
               top1=0.588, **common,
               notes="Section 3.2.1 gives this run's base LR as 0.01."),
        _paper(2, "alexnet", "sgd", 4096, "-0.01-no-warmup", learning_rate=0.01,
               warmup_epochs=0, top1=0.001, **common),
    ] + [
        _paper(2, "alexnet", "sgd", batch, f"-{rate}", learning_rate=rate,
               warmup_epochs=warmup, warmup_start=0.001, top1=top1, **common)
        for (batch, warmup), rates in rows.items()
        for rate, top1 in rates.items()
    ]  # fmt: skip


def _table3() -> list[Recipe]:
    rows = {
        512: {0.02: 0.602},
        4096: {0.02: 0.540, 0.16: 0.581, 0.18: 0.589, 0.21: 0.585, 0.25: 0.583,
               0.30: 0.571},
        8192: {0.23: 0.576, 0.30: 0.580, 0.32: 0.577, 0.41: 0.565},
    }  # fmt: skip
    hints = {
        "warmup_epochs": "2.5 at 4096 and 6 at 8192 in Table 2, without BatchNorm",
        "warmup_start": "0.001 in Table 2",
    }
    return [
        _paper(3, "alexnet_bn", "sgd", batch, f"-{rate:.2f}" if len(rates) > 1 else "",
               epochs=128, learning_rate=rate, warmup_epochs=None, momentum=0.9,
               weight_decay=5e-4, top1=top1, hints=hints)
        for batch, rates in rows.items()
        for rate, top1 in rates.items()
    ]  # fmt: skip


def _table5() -> list[Recipe]:
    rows = [(512, 5.0, 0.602), (4096, 10.0, 0.604), (8192, 14.0, 0.601)]
    return [
        _paper(5, "alexnet_bn", "lars", batch, epochs=100, learning_rate=rate,
               warmup_epochs=2, momentum=0.9, weight_decay=5e-4, top1=top1,
               hints=_START)
        for batch, rate, top1 in rows
    ]  # fmt: skip


def _table6() -> list[Recipe]:
    common: dict[str, Any] = {
        "epochs": 100, "learning_rate": None, "momentum": 0.9, "weight_decay": 5e-4,
    }  # fmt: skip
    tuned = {
        "learning_rate": f"10 in the LARS settings of {_SOLVER}; tuned from 1 to 50"
    }
    return [
        _paper(6, "alexnet", "sgd", 512, warmup_epochs=0, top1=0.588, **common,
               hints={"learning_rate": "0.02 in Table 2; 0.01 in section 3.2.1"}),
        _paper(6, "alexnet", "lars", 4096, warmup_epochs=13, top1=0.584, **common,
               hints=tuned | _START),
        _paper(6, "alexnet", "lars", 8192, warmup_epochs=8, top1=0.583, **common,
               hints=tuned | _START),
    ]  # fmt: skip


def _table7() -> list[Recipe]:
    hints = {"momentum": "0.9 in Table 1", "weight_decay": "0.0001 in Table 1"}
    common: dict[str, Any] = {"epochs": 90, "momentum": None, "weight_decay": None}
    rows = [
        (8192, 6.4, 12.8, 0.727),
        (16384, 2.5, 25.0, 0.730),
        (32768, 2.9, 29.0, 0.726),
    ]
    recipes = [
        _paper(7, "resnet50", "sgd", 256, learning_rate=0.2, warmup_epochs=0,
               top1=0.730, hints=hints, **common),
    ]  # fmt: skip
    for batch, printed, logged, top1 in rows:
        corrected = {
            "learning_rate": f"the table prints {printed}, "
            + ("Table 1's SGD row again" if batch == 8192 else "probably a misprint")
            + f"; torchlars took {logged} from the authors' logs"
        }
        for suffix, rate, inferred in [
            ("", printed, {}),
            ("-corrected", logged, corrected),
        ]:
            recipes.append(
                _paper(7, "resnet50", "lars", batch, suffix, learning_rate=rate,
                       warmup_epochs=5, top1=top1, inferred=inferred,
                       hints=hints | _START, **common)
            )  # fmt: skip
    return recipes


def _goyal() -> list[Recipe]:
    return [
        Recipe(
            name="goyal-resnet50-sgd-8192", source="Goyal et al. 2017, section 5.1",
            network="resnet50_v1.5", algorithm="sgd", batch_size=8192, epochs=90,
            learning_rate=3.2, decay="piecewise_constant", boundaries=(30, 60, 80),
            warmup_epochs=5, warmup_start=0.1, decay_from_start=False, momentum=0.9,
            nesterov=True, momentum_order="unscaled", weight_decay=1e-4, mask=BY_ROLE,
            top1=0.7626,
            inferred={
                "momentum_order": "equivalent to its momentum correction (remark 2)",
                "mask": "it does not decay BatchNorm; here no bias is decayed either",
                "label_smoothing": "not stated",
            },
        )
    ]  # fmt: skip


def _mlperf() -> list[Recipe]:
    rows: list[tuple[str, int, float, float, float, float, float]] = [
        # round, batch, γ, warm-up epochs, μ, β, epochs
        ("rcp", 4096, 10.0, 5, 0.9, 2e-4, 47),
        ("v0.7", 4096, 13.0, 2, 0.9, 2e-4, 41),
        ("v1.0", 8192, 17.0, 5, 0.9, 2e-4, 44),
        ("v0.6", 16384, 25.0, 5, 0.9, 2e-4, 72),
        ("v0.6", 32768, 31.2, 25, 0.9, 1e-4, 76),
        ("v1.0", 32768, 29.0, 18, 0.929, 1e-4, 60),
        ("v0.7", 65536, 24.699, 31, 0.951807, 1e-4, 89),
    ]
    inferred = {
        "momentum_order": "Google's LARS has the learning rate inside the momentum",
        "nesterov": "not among the logged values",
        "fallback_ratio": "Google's LARS has a ratio of 1 for skipped variables",
    }
    logs = "mlcommons/training_results_{}, Google"
    rcp = "mlcommons/logging at 7bbf7926, training_4.0.0/rcps_resnet.json"
    return [
        Recipe(
            name=f"mlperf-{round_}-resnet50-lars-{batch}",
            source=rcp if round_ == "rcp" else logs.format(round_),
            network="resnet50_v1.5", algorithm="lars", batch_size=batch, epochs=epochs,
            learning_rate=rate, end_learning_rate=1e-4, warmup_epochs=warmup,
            warmup_start=0.0, decay_from_start=False, extra_decay_steps=1, momentum=mu,
            weight_decay=beta, mask=BY_ROLE, fallback_ratio=1.0, label_smoothing=0.1,
            inferred=inferred,
        )
        for round_, batch, rate, warmup, mu, beta, epochs in rows
    ]  # fmt: skip


_TABLES = (_table1, _table2, _table3, _table5, _table6, _table7, _goyal, _mlperf)
_RECIPES = {recipe.name: recipe for table in _TABLES for recipe in table()}


def names() -> tuple[str, ...]:
    """Returns the names of all recipes, in the order of their tables.

    Example:
      >>> names()[0]
      'paper-t1-resnet50-sgd-256'
    """
    return tuple(_RECIPES)


def get(name: str) -> Recipe:
    """Returns the published recipe that has the given name.

    Args:
      name: A name that `names` lists.

    Raises:
      ValueError: If no recipe has this name. The message has the nearest names.

    Example:
      >>> recipe = get("mlperf-v1.0-resnet50-lars-32768")
      >>> rate = recipe.schedule(num_examples=1_281_167)
      >>> round(float(rate(704)), 3)  # step 704 of 2346 is the end of the warm-up
      29.0
    """
    if name in _RECIPES:
        return _RECIPES[name]
    nearest = difflib.get_close_matches(str(name), _RECIPES, n=3, cutoff=0.0)
    raise ValueError(
        f"no recipe is called {name!r}; the nearest names are {', '.join(nearest)}. "
        "recipes.names() lists all names."
    )
