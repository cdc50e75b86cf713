"""The recipes of MLPerf: ResNet-50 with LARS.

They are Google's results in the rounds v0.6, v0.7 and v1.0, and the reference
convergence points (RCP) of MLPerf Training 4.0. Results that differ only in the
hardware are one recipe.
"""

from typing import Any

from lars_optax._masks import BY_ROLE
from lars_optax._recipe import IMAGENET, Recipe, Steps

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
_TF1 = {"momentum_order": "not published; that of tf.contrib in TensorFlow 1.15"}


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
        warmup = warmup_epochs * IMAGENET // batch
    values: dict[str, Any] = {
        "epochs": round(total * batch / IMAGENET), "extra_decay_steps": 1,
    } | fields  # fmt: skip
    return Recipe(
        name=f"mlperf-{name}",
        source=source,
        network="resnet50_v1.5",
        algorithm="lars",
        batch_size=batch,
        steps=Steps(warmup, total, batch, IMAGENET),
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
                    batch, rate, 5, 0.9, 2e-4, total, _TF1, top1=top1)
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
                0.951807, 1e-4, 1738, _TF1, top1=0.76064),
        _mlperf("v0.7-resnet50-lars-65536-jax",
                f"{_V07}tpu-v3-8192-JAX/resnet/result_0.txt", 65536, 23.080977304670448,
                33, 0.9537213777059405, 1e-4, 1817,
                {"epochs": "the default of the submission's train.py"}, warmup=652,
                epochs=92, zero_init_last_bn=True, top1=0.76074, notes=jax_notes),
    ]  # fmt: skip
    return sorted(recipes, key=lambda recipe: recipe.batch_size)


def _mlperf_v10() -> list[Recipe]:
    rows: list[tuple[int, float, int, float, float, int, str, float]] = [
        # batch, γ, warm-up epochs, μ, β, steps, log, accuracy
        (8192, 17.0, 5, 0.9, 2e-4, 6875, "tpu-v4-128-TF", 0.76020),
        (32768, 29.0, 18, 0.929, 1e-4, 2355, "tpu-v4-4096-TF", 0.75944),
        (55296, 25.67, 29, 0.94053, 1e-4, 1860, "tpu-v4-6912-TF", 0.75960),
    ]
    return [
        _mlperf(f"v1.0-resnet50-lars-{batch}", f"{_V10}{log}/resnet/result_0.txt",
                batch, rate, warmup_epochs, mu, beta, total, _TF1, top1=top1)
        for batch, rate, warmup_epochs, mu, beta, total, log, top1 in rows
    ]  # fmt: skip


def _mlperf_rcp() -> list[Recipe]:
    listed = "in the rows that list it and in the logs of the rounds"
    common = {
        "end_learning_rate": f"0.0001 {listed}",
        "eps": f"0 {listed}",
        "power": f"2 {listed}",
        "warmup_start": "0 in the code of the rounds",
        "mask": "the code of the rounds leaves out biases and norm parameters",
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
        warmup = warmup_epochs * IMAGENET // batch
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


RECIPES = (*_mlperf_v06(), *_mlperf_v07(), *_mlperf_v10(), *_mlperf_rcp())
