"""The published hyperparameters of runs with LARS and SGD, as recipes.

The recipes are these, by the first part of their names:

- "paper": the rows of the LARS paper's Tables 1 to 3 and 5 to 7.
- "goyal": Goyal et al.'s run at a batch size of 8192.
- "mlperf": ResNet-50 with LARS. The recipes are Google's results in the rounds v0.6,
  v0.7 and v1.0, and the reference convergence points (RCP) of MLPerf Training 4.0.
  Results that differ only in the hardware are one recipe.
- "barlow-twins", "vicreg", "byol", "simclr", "moco-v3", "swav": self-supervised
  learning of ResNet-50.
- "mae": the linear probe of a masked autoencoder.

`names()` lists them and `get(name)` returns one. `Recipe` describes the fields. If the
authors' logs contradict a printed learning rate, there are two recipes. One has the
printed rate. The other has the rate of the logs, and its name ends in "-corrected".

The paper is version 1 of arXiv:1708.03888, "Scaling SGD Batch Size to 32K for ImageNet
Training", of August 2017. Its later versions have another title and other tables.
"""

import difflib
from typing import Any

from lars_optax._masks import BY_ROLE
from lars_optax._recipe import Recipe as Recipe
from lars_optax._recipe import Steps as Steps
from lars_optax._schedules import linear_scaling

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
_IMAGENET = 1_281_167  # training images
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
            network="resnet50_v1.5", zero_init_last_bn=True, algorithm="sgd",
            batch_size=8192, rate_scaling="linear", epochs=90, learning_rate=3.2,
            decay="piecewise_constant", boundaries=(30, 60, 80), warmup_epochs=5,
            warmup_start=0.1, decay_from_start=False, momentum=0.9, nesterov=True,
            momentum_order="unscaled", weight_decay=1e-4, mask=BY_ROLE, top1=0.7626,
            inferred={
                "momentum_order": "equivalent to its momentum correction (remark 2)",
                "mask": "BatchNorm is not decayed in the source; here biases are not "
                "either",
                "label_smoothing": "not stated",
            },
        )
    ]  # fmt: skip


_V06, _V07, _V10 = (
    f"mlcommons/training_results_{version}, Google/results/"
    for version in ("v0.6 at f312518c", "v0.7 at 0a8a85a2", "v1.0 at 50619b5d")
)
_RCP = (
    "mlcommons/logging at 7bbf7926, "
    "mlperf_logging/rcp_checker/training_4.0.0/rcps_resnet.json"
)
_RULE = {
    "nesterov": "not among the logged values",
    "fallback_ratio": "Google's LARS has a ratio of 1 for skipped variables",
    "epochs": "the steps, as epochs of 1,281,167 images, rounded",
}


def _mlperf(
    name: str,
    source: str,
    batch: int,
    rate: float,
    warmup_epochs: int,
    momentum: float,
    weight_decay: float,
    total: int,
    inferred: dict[str, str],
    warmup: int | None = None,
    **fields: Any,
) -> Recipe:
    """Returns a recipe of MLPerf, which runs for `total` steps.

    If `warmup` is None, the warm-up is rounded down to whole steps, as in Google's
    code.
    """
    if warmup is None:
        warmup = warmup_epochs * _IMAGENET // batch
    values: dict[str, Any] = {
        "epochs": round(total * batch / _IMAGENET), "extra_decay_steps": 1,
    } | fields  # fmt: skip
    return Recipe(
        name=f"mlperf-{name}",
        source=source,
        network="resnet50_v1.5",
        algorithm="lars",
        batch_size=batch,
        steps=Steps(warmup, total, batch, _IMAGENET),
        learning_rate=rate,
        end_learning_rate=1e-4,
        warmup_epochs=warmup_epochs,
        warmup_start=0.0,
        decay_from_start=False,
        momentum=momentum,
        weight_decay=weight_decay,
        mask=BY_ROLE,
        fallback_ratio=1.0,
        label_smoothing=0.1,
        inferred=_RULE | inferred,
        **values,
    )


def _mlperf_v06() -> list[Recipe]:
    inferred = {
        "momentum": "not logged; 0.9 is the default of the flag in resnet_main.py",
    }
    notes = (
        "The order of momentum is that of tf.contrib in a TensorFlow 1.14 nightly of "
        "May 2019 (setup.sh). The weight decay is in the loss, for the bias of the "
        "last layer too (resnet_main.py)."
    )
    rows = [
        # suffix, batch, γ, warm-up epochs, β, steps, ε, log, accuracy
        ("4096", 4096, 10.0, 5, 2e-4, 22536, 0.0, "tpu-v3-32", 0.76090),
        ("16384", 16384, 25.0, 5, 2e-4, 5634, 0.0, "tpu-v3-128", 0.76136),
        ("32768", 32768, 31.2, 25, 1e-4, 2983, 1e-5, "tpu-v3-2048", 0.76065),
        ("32768-33", 32768, 33.0, 25, 2e-4, 2983, 0.0, "tpu-v3-256", 0.76036),
    ]
    return [
        _mlperf(f"v0.6-resnet50-lars-{suffix}", f"{_V06}{log}/resnet/result_0.txt",
                batch, rate, warmup_epochs, 0.9, beta, total, inferred, eps=eps,
                momentum_order="tf_contrib_1.14", zero_init_last_bn=True, top1=top1,
                notes=notes)
        for suffix, batch, rate, warmup_epochs, beta, total, eps, log, top1 in rows
    ]  # fmt: skip


def _mlperf_v07() -> list[Recipe]:
    tf1 = {"momentum_order": "not published; that of tf.contrib in TensorFlow 1.15"}
    keras = {"eps": "the log has 0, which lars_optimizer.py replaces by Keras's 1e-7"}
    rows = [
        # batch, γ, steps, log, accuracy
        (2048, 8.5, 25656, "tpu-v4-16-TF", 0.76048),
        (8192, 17.0, 7500, "tpu-v4-128-TF", 0.76198),
    ]
    jax_notes = (
        "Biases and norm parameters have flax.optim.Momentum, with the learning rate "
        "after the momentum. The warm-up lasts 651.75 steps and the decay 1166.25."
    )
    recipes = [
        *(
            _mlperf(f"v0.7-resnet50-lars-{batch}", f"{_V07}{log}/resnet/result_0.txt",
                    batch, rate, 5, 0.9, 2e-4, total, tf1, top1=top1)
            for batch, rate, total, log, top1 in rows
        ),
        _mlperf("v0.7-resnet50-lars-2496",
                f"{_V07}gpu-v100-8-TF2.0/resnet/result_0.txt", 2496, 9.5, 5, 0.9, 2e-4,
                20520, keras, warmup=2565, eps=1e-7, top1=0.75952),
        _mlperf("v0.7-resnet50-lars-4096",
                f"{_V07}tpu-v3-32-TF2.0/resnet/result_0.txt", 4096, 13.0, 2, 0.9, 2e-4,
                12792, keras, warmup=624, eps=1e-7, top1=0.75956),
        _mlperf("v0.7-resnet50-lars-65536",
                f"{_V07}tpu-v3-8192-TF/resnet/result_0.txt", 65536, 24.699, 31,
                0.951807, 1e-4, 1738, tf1, top1=0.76064),
        _mlperf("v0.7-resnet50-lars-65536-jax",
                f"{_V07}tpu-v3-8192-JAX/resnet/result_0.txt", 65536, 23.080977304670448,
                33, 0.9537213777059405, 1e-4, 1817,
                {"epochs": "the default of the submission's train.py"}, warmup=652,
                epochs=92, zero_init_last_bn=True, top1=0.76074, notes=jax_notes),
    ]  # fmt: skip
    return sorted(recipes, key=lambda recipe: recipe.batch_size)


def _mlperf_v10() -> list[Recipe]:
    inferred = {
        "momentum_order": "not published; that of tf.contrib in TensorFlow 1.15"
    }
    rows: list[tuple[int, float, int, float, float, int, str, float]] = [
        # batch, γ, warm-up epochs, μ, β, steps, log, accuracy
        (8192, 17.0, 5, 0.9, 2e-4, 6875, "tpu-v4-128-TF", 0.76020),
        (32768, 29.0, 18, 0.929, 1e-4, 2355, "tpu-v4-4096-TF", 0.75944),
        (55296, 25.67, 29, 0.94053, 1e-4, 1860, "tpu-v4-6912-TF", 0.75960),
    ]
    return [
        _mlperf(f"v1.0-resnet50-lars-{batch}", f"{_V10}{log}/resnet/result_0.txt",
                batch, rate, warmup_epochs, mu, beta, total, inferred, top1=top1)
        for batch, rate, warmup_epochs, mu, beta, total, log, top1 in rows
    ]  # fmt: skip


def _mlperf_rcp() -> list[Recipe]:
    listed = "in the rows that list it and in the logs of the rounds"
    common = {
        "end_learning_rate": f"0.0001 {listed}",
        "eps": f"0 {listed}",
        "power": f"2 {listed}",
        "warmup_start": "0 in the code of the rounds",
        "mask": "no bias and norm parameter in the code of the rounds",
        "label_smoothing": "0.1 in Google's commands",
        "zero_init_last_bn": "not stated; not in Google's code of v1.0",
    }
    google = common | {
        "momentum_order": "not stated; that of Google's other rows",
        "extra_decay_steps": "1 in Google's code of the rounds",
    }
    nvidia = common | {
        "momentum_order": "NVIDIA's MXNet code of v1.0 scales the momentum by the "
        "change of the rate (common/fit.py)",
        "extra_decay_steps": "NVIDIA's MXNet code of v1.0 has none (common/fit.py)",
    }
    after = "the listed {} decay steps begin after the warm-up"
    whole = "the listed {} decay steps are taken as the whole run, because the runs "
    whole += "converge shortly before that step"
    rows: list[tuple[int, float, int, float, float, int, bool, bool]] = [
        # batch, γ, warm-up epochs, μ, β, decay steps, are they the whole run, Google's?
        (1632, 7.4, 2, 0.9, 5e-5, 27476, False, False),
        (3264, 10.5, 2, 0.9, 5e-5, 14523, True, False),
        (4096, 10.0, 5, 0.9, 2e-4, 13137, False, True),
        (8192, 17.0, 5, 0.9, 2e-4, 6095, False, True),
        (13056, 12.8, 9, 0.9, 2.5e-5, 4710, True, False),
        (32768, 21.2, 16, 0.94, 2.5e-5, 2267, True, True),
        (49152, 19.405, 24, 0.951807, 1e-4, 1846, True, False),
        (58880, 23.246, 29, 0.951807, 1e-4, 1785, True, False),
        (65536, 24.699, 31, 0.951807, 1e-4, 1133, False, True),
        (67840, 24.699, 31, 0.951807, 1e-4, 1133, False, False),
    ]
    recipes = []
    for batch, rate, warmup_epochs, mu, beta, decay, is_whole, is_google in rows:
        extra = int(is_google)
        warmup = warmup_epochs * _IMAGENET // batch
        grounds = (google if is_google else nvidia) | {
            "steps": (whole if is_whole else after).format(decay)
        }
        recipes.append(
            _mlperf(f"rcp-resnet50-lars-{batch}", _RCP, batch, rate, warmup_epochs, mu,
                    beta, decay if is_whole else decay + warmup - extra, grounds,
                    extra_decay_steps=extra,
                    momentum_order="scaled" if is_google else "unscaled")
        )  # fmt: skip
    return recipes


def _per_256(rate: float, batch: int) -> dict[str, Any]:
    """Returns the learning rate of a source that states it for 256 images."""
    return {
        "rate_scaling": "linear",
        "learning_rate": linear_scaling(rate, batch, 256),
    }


def _pretrained(
    name: str, source: str, batch: int, epochs: int, per_epoch: float, **fields: Any
) -> Recipe:
    """Returns a recipe with LARS, a warm-up of 10 epochs from 0 and a cosine decay.

    An epoch has `per_epoch` steps. A number of steps is rounded down.
    """
    steps = Steps(int(10 * per_epoch), int(epochs * per_epoch), batch, _IMAGENET)
    values: dict[str, Any] = {
        "task": "self_supervised",
        "network": "resnet50_v1.5",
        "steps": steps,
        "decay": "cosine",
        "warmup_start": 0.0,
        "momentum_order": "unscaled",
        "mask": BY_ROLE,
        "denominator": "joint",
        "fallback_ratio": 1.0,
    } | fields
    return Recipe(
        name=name,
        source=source,
        algorithm="lars",
        batch_size=batch,
        epochs=epochs,
        warmup_epochs=10,
        decay_from_start=False,
        momentum=0.9,
        **values,
    )


def _self_supervised() -> list[Recipe]:
    barlow = "facebookresearch/barlowtwins at 8e8d284c, main.py"
    vicreg = "facebookresearch/vicreg at 4e12602f, main_vicreg.py and README.md"
    vicreg_rows = [(512, 100, 0.3, 2503, None), (2048, 1000, 0.2, 626, 0.732)]
    steps = {"steps": "the batches of an epoch in the source's loader"}
    return [
        _pretrained(
            "barlow-twins-resnet50-lars-2048", barlow, 2048, 1000, 626,
            **_per_256(0.2, 2048), end_learning_rate=1.6e-3, weight_decay=1e-6,
            zero_init_last_bn=True, fallback_ratio=0.0048 / 0.2, top1=0.735,
            inferred=steps | {
                "learning_rate": "0.2 for 256 images",
                "end_learning_rate": "0.001 of the peak",
                "fallback_ratio": "the source has a rate of 0.0048 for biases and norm "
                "parameters and of 0.2 for weights",
            },
            notes="A leaf of weights with a zero norm has a ratio of 1 in the source.",
        ),
        *(
            _pretrained(
                f"vicreg-resnet50-lars-{batch}", vicreg, batch, epochs, per_epoch,
                **_per_256(rate, batch), weight_decay=1e-6, zero_init_last_bn=True,
                end_learning_rate=linear_scaling(rate, batch, 256) * 0.001, top1=top1,
                inferred=steps | {
                    "learning_rate": f"{rate} for 256 images",
                    "end_learning_rate": "0.001 of the peak",
                } | ({"top1": "that of the published ResNet-50"} if top1 else {}),
            )
            for batch, epochs, rate, per_epoch, top1 in vicreg_rows
        ),
    ]  # fmt: skip


def _byol() -> list[Recipe]:
    source = (
        "google-deepmind/deepmind-research at f5de0ede, byol/configs/byol.py and "
        "byol/main_loop.py"
    )
    rows = [
        # epochs, γ per 256 images, β
        (40, 0.45, 1e-6), (100, 0.45, 1e-6), (300, 0.3, 1e-6), (1000, 0.2, 1.5e-6),
    ]  # fmt: skip
    return [
        _pretrained(
            f"byol-resnet50-lars-4096-{epochs}-epochs", source, 4096, epochs,
            _IMAGENET / 4096, **_per_256(rate, 4096), weight_decay=beta,
            zero_init_last_bn=True,
            inferred={
                "learning_rate": f"{rate} for 256 images",
                "zero_init_last_bn": "Haiku's ResNet blocks (byol/README.md)",
            },
            notes="In the paper's runs the scale of every BatchNorm starts at 1.",
        )
        for epochs, rate, beta in rows
    ]  # fmt: skip


def _simclr() -> list[Recipe]:
    code = "google-research/simclr at 383d4143"
    common: dict[str, Any] = {
        "momentum_order": "scaled", "zero_init_last_bn": True, "learning_rate": 4.8,
        "steps": Steps(3127, 31279, 4096, _IMAGENET),
    }  # fmt: skip
    return [
        _pretrained(
            "simclr-resnet50-lars-4096-linear", "Chen et al. 2020, section 2.3",
            4096, 100, _IMAGENET / 4096, **common, rate_scaling="linear",
            weight_decay=1e-6,
            inferred={
                "momentum_order": f"{code}, lars_optimizer.py",
                "steps": f"{code}, model_util.py",
                "zero_init_last_bn": f"{code}, resnet.py",
            },
            notes=f"In {code}, run.py has these defaults: a rate of 0.3 for 256 "
            "images, linear scaling, a momentum of 0.9, 10 epochs of warm-up and 100 "
            "epochs. The command in README.md has the batch size. The default weight "
            "decay is 1e-4 in run.py and 1e-6 in tf2/run.py.",
        ),
        _pretrained(
            "simclr-resnet50-lars-4096-sqrt", f"{code}, README.md", 4096, 100,
            _IMAGENET / 4096, **common, rate_scaling="sqrt", weight_decay=1e-4,
            top1=0.645,
            inferred={
                "learning_rate": "0.075 times the square root of the batch size",
                "warmup_epochs": "the default of run.py",
                "momentum": "the default of run.py",
            },
            notes="The paper has a weight decay of 1e-6.",
        ),
    ]  # fmt: skip


def _moco_v3() -> list[Recipe]:
    rows = [
        # epochs, γ per 256 images, β, accuracy
        (100, 0.6, 1e-6, 0.689), (300, 0.3, 1e-6, 0.728), (1000, 0.3, 1.5e-6, 0.746),
    ]  # fmt: skip
    return [
        _pretrained(
            f"moco-v3-resnet50-lars-4096-{epochs}-epochs",
            "facebookresearch/moco-v3 at c349e6e2, CONFIG.md and main_moco.py",
            4096, epochs, 312, **_per_256(rate, 4096), weight_decay=beta, top1=top1,
            zero_init_last_bn=True,
            inferred={
                "learning_rate": f"{rate} for 256 images",
                "steps": "the loader drops the last incomplete batch on 16 GPUs",
            },
        )
        for epochs, rate, beta, top1 in rows
    ]  # fmt: skip


def _swav() -> list[Recipe]:
    return [
        _pretrained(
            "swav-resnet50-lars-4096",
            "facebookresearch/swav at 06b1b7cb, scripts/swav_800ep_pretrain.sh and "
            "main_swav.py",
            4096, 800, 312, learning_rate=4.8, end_learning_rate=0.0048,
            warmup_start=0.3, weight_decay=1e-6, mask=True, denominator="separate",
            eps=1e-8, top1=0.753,
            inferred={
                "denominator": "NVIDIA apex, apex/parallel/LARC.py with clip=False",
                "eps": "the default of apex's LARC",
                "steps": "the loader drops the last incomplete batch on 64 GPUs",
            },
            notes="apex's LARC leaves the weight decay out where a norm is zero. The "
            "last warm-up step has the peak rate. The prototypes are normalised before "
            "each step and get no gradient in the first 313 steps. At a batch size of "
            "256 the source has a rate of 0.6.",
        )
    ]  # fmt: skip


def _mae() -> list[Recipe]:
    return [
        _pretrained(
            "mae-vit_base_patch16-lars-16384",
            "facebookresearch/mae at efb2a806, FINETUNE.md and main_linprobe.py",
            16384, 90, 78, **_per_256(0.1, 16384), task="linear_probe",
            network="vit_base_patch16", weight_decay=0.0, top1=0.678,
            inferred={
                "learning_rate": "0.1 for 256 images",
                "steps": "the loader drops the last incomplete batch on 32 GPUs",
            },
            notes="The classifier follows a BatchNorm without scale and bias.",
        )
    ]  # fmt: skip


_TABLES = (
    _table1, _table2, _table3, _table5, _table6, _table7, _goyal, _mlperf_v06,
    _mlperf_v07, _mlperf_v10, _mlperf_rcp, _self_supervised, _byol, _simclr, _moco_v3,
    _swav, _mae,
)  # fmt: skip
_RECIPES = {recipe.name: recipe for table in _TABLES for recipe in table()}


def names(family: str | None = None) -> tuple[str, ...]:
    """Returns the names of the recipes, in the order of their tables.

    Args:
      family: The beginning of the names, up to one of their hyphens, such as "paper",
        "paper-t7", "mlperf" or "byol". None selects all recipes.

    Raises:
      ValueError: If no name begins with `family`.

    Example:
      >>> names("paper")[0], len(names("mlperf-v1.0"))
      ('paper-t1-resnet50-sgd-256', 3)
    """
    if family is None:
        return tuple(_RECIPES)
    found = tuple(name for name in _RECIPES if name.startswith(f"{family}-"))
    if not found:
        known = dict.fromkeys(name.split("-resnet50")[0] for name in _RECIPES)
        raise ValueError(
            f"no name of a recipe begins with {family!r}-. Names begin for example "
            f"with {', '.join(known)}."
        )
    return found


def get(name: str) -> Recipe:
    """Returns the published recipe that has the given name.

    Args:
      name: A name that `names` lists.

    Raises:
      ValueError: If no recipe has this name. The message has the nearest names.

    Example:
      >>> recipe = get("mlperf-v1.0-resnet50-lars-32768")
      >>> rate = recipe.schedule(num_examples=1_281_167)
      >>> round(float(rate(703)), 3)  # step 703 of 2355 is the end of the warm-up
      29.0
    """
    if name in _RECIPES:
        return _RECIPES[name]
    nearest = difflib.get_close_matches(str(name), _RECIPES, n=3, cutoff=0.0)
    raise ValueError(
        f"no recipe is called {name!r}; the nearest names are {', '.join(nearest)}. "
        "recipes.names() lists all names."
    )
