"""The recipes of the LARS paper and of Goyal et al. 2017.

The paper is version 1 of arXiv:1708.03888, "Scaling SGD Batch Size to 32K for ImageNet
Training", of August 2017. Its later versions have another title and other tables.
"""

from typing import Any

from lars_optax._masks import BY_ROLE
from lars_optax._recipe import Recipe

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


_GOYAL = Recipe(
    name="goyal-resnet50-sgd-8192", source="Goyal et al. 2017, section 5.1",
    network="resnet50_v1.5", zero_init_last_bn=True, algorithm="sgd", batch_size=8192,
    rate_scaling="linear", epochs=90, learning_rate=3.2, decay="piecewise_constant",
    boundaries=(30, 60, 80), warmup_epochs=5, warmup_start=0.1, decay_from_start=False,
    momentum=0.9, nesterov=True, momentum_order="unscaled", weight_decay=1e-4,
    mask=BY_ROLE, top1=0.7626,
    inferred={
        "momentum_order": "equivalent to its momentum correction (remark 2)",
        "mask": "BatchNorm is not decayed in the source; here biases are not either",
        "label_smoothing": "not stated",
    },
)  # fmt: skip

RECIPES = (
    *_table1(), *_table2(), *_table3(), *_table5(), *_table6(), *_table7(), _GOYAL
)  # fmt: skip
