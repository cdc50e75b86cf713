"""The recipes of self-supervised learning, and of a linear probe of its features."""

from typing import Any

from lars_optax._masks import BY_ROLE
from lars_optax._recipe import IMAGENET, Recipe, Steps
from lars_optax._schedules import linear_scaling


def _cosine_recipe(
    name: str,
    source: str,
    batch: int,
    epochs: int,
    per_epoch: float,
    *,
    rate_of_256: float | None = None,
    end_factor: float = 0.0,
    inferred: dict[str, str],
    **fields: Any,
) -> Recipe:
    """Returns a recipe with LARS, a warm-up of 10 epochs from 0 and a cosine decay.

    An epoch has `per_epoch` steps. A number of steps is rounded down. If the source
    states its learning rate for 256 images, `rate_of_256` is this rate. The rate at the
    end of the run is then `end_factor` times the peak.
    """
    values: dict[str, Any] = {
        "task": "self_supervised",
        "network": "resnet50_v1.5",
        "steps": Steps(int(10 * per_epoch), int(epochs * per_epoch), batch, IMAGENET),
        "decay": "cosine",
        "warmup_start": 0.0,
        "momentum_order": "unscaled",
        "mask": BY_ROLE,
        "denominator": "joint",
        "fallback_ratio": 1.0,
    }
    if rate_of_256 is not None:
        peak = linear_scaling(rate_of_256, batch, 256)
        values |= {"rate_scaling": "linear", "learning_rate": peak}
        values["end_learning_rate"] = end_factor * peak
        grounds = {"learning_rate": f"{rate_of_256} for 256 images"}
        if end_factor:
            grounds["end_learning_rate"] = f"{end_factor} of the peak"
        inferred = grounds | inferred
    return Recipe(
        name=name,
        source=source,
        algorithm="lars",
        batch_size=batch,
        epochs=epochs,
        warmup_epochs=10,
        decay_from_start=False,
        momentum=0.9,
        inferred=inferred,
        **values | fields,
    )


_LOADER = {"steps": "the batches of an epoch in the source's loader"}
_BARLOW_TWINS = _cosine_recipe(
    "barlow-twins-resnet50-lars-2048", "facebookresearch/barlowtwins at 8e8d284c, "
    "main.py", 2048, 1000, 626, rate_of_256=0.2, end_factor=0.001, weight_decay=1e-6,
    zero_init_last_bn=True, fallback_ratio=0.0048 / 0.2, top1=0.735,
    inferred=_LOADER | {
        "fallback_ratio": "the source has a rate of 0.0048 for biases and norm "
        "parameters and of 0.2 for weights",
    },
    notes="A leaf of weights with a zero norm has a ratio of 1 in the source.",
)  # fmt: skip


def _vicreg() -> list[Recipe]:
    source = "facebookresearch/vicreg at 4e12602f, main_vicreg.py and README.md"
    published = {"top1": "that of the published ResNet-50"}
    rows = [
        # batch, epochs, γ of 256 images, steps of an epoch, accuracy
        (512, 100, 0.3, 2503, None), (2048, 1000, 0.2, 626, 0.732),
    ]  # fmt: skip
    return [
        _cosine_recipe(
            f"vicreg-resnet50-lars-{batch}", source, batch, epochs, per_epoch,
            rate_of_256=rate, end_factor=0.001, weight_decay=1e-6,
            zero_init_last_bn=True, top1=top1,
            inferred=_LOADER | (published if top1 else {}),
        )
        for batch, epochs, rate, per_epoch, top1 in rows
    ]  # fmt: skip


def _byol() -> list[Recipe]:
    source = (
        "google-deepmind/deepmind-research at f5de0ede, byol/configs/byol.py and "
        "byol/main_loop.py"
    )
    rows = [
        # epochs, γ of 256 images, β
        (40, 0.45, 1e-6), (100, 0.45, 1e-6), (300, 0.3, 1e-6), (1000, 0.2, 1.5e-6),
    ]  # fmt: skip
    return [
        _cosine_recipe(
            f"byol-resnet50-lars-4096-{epochs}-epochs", source, 4096, epochs,
            IMAGENET / 4096, rate_of_256=rate, weight_decay=beta,
            zero_init_last_bn=True,
            inferred={"zero_init_last_bn": "Haiku's ResNet blocks (byol/README.md)"},
            notes="In the paper's runs the scale of every BatchNorm starts at 1.",
        )
        for epochs, rate, beta in rows
    ]  # fmt: skip


def _simclr() -> list[Recipe]:
    code = "google-research/simclr at 383d4143"
    common: dict[str, Any] = {
        "momentum_order": "scaled", "zero_init_last_bn": True, "learning_rate": 4.8,
        "steps": Steps(3127, 31279, 4096, IMAGENET),
    }  # fmt: skip
    return [
        _cosine_recipe(
            "simclr-resnet50-lars-4096-linear", "Chen et al. 2020, section 2.3",
            4096, 100, IMAGENET / 4096, **common, rate_scaling="linear",
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
        _cosine_recipe(
            "simclr-resnet50-lars-4096-sqrt", f"{code}, README.md", 4096, 100,
            IMAGENET / 4096, **common, rate_scaling="sqrt", weight_decay=1e-4,
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
        # epochs, γ of 256 images, β, accuracy
        (100, 0.6, 1e-6, 0.689), (300, 0.3, 1e-6, 0.728), (1000, 0.3, 1.5e-6, 0.746),
    ]  # fmt: skip
    return [
        _cosine_recipe(
            f"moco-v3-resnet50-lars-4096-{epochs}-epochs",
            "facebookresearch/moco-v3 at c349e6e2, CONFIG.md and main_moco.py",
            4096, epochs, 312, rate_of_256=rate, weight_decay=beta, top1=top1,
            zero_init_last_bn=True,
            inferred={"steps": "the loader drops the last incomplete batch on 16 GPUs"},
        )
        for epochs, rate, beta, top1 in rows
    ]  # fmt: skip


_SWAV = _cosine_recipe(
    "swav-resnet50-lars-4096", "facebookresearch/swav at 06b1b7cb, "
    "scripts/swav_800ep_pretrain.sh and main_swav.py", 4096, 800, 312,
    learning_rate=4.8, end_learning_rate=0.0048, warmup_start=0.3, weight_decay=1e-6,
    mask=True, denominator="separate", eps=1e-8, top1=0.753,
    inferred={
        "denominator": "NVIDIA apex, apex/parallel/LARC.py with clip=False",
        "eps": "the default of apex's LARC",
        "steps": "the loader drops the last incomplete batch on 64 GPUs",
    },
    notes="apex's LARC leaves the weight decay out where a norm is zero. The last "
    "warm-up step has the peak rate. The prototypes are normalised before each step "
    "and get no gradient in the first 313 steps. At a batch size of 256 the source has "
    "a rate of 0.6.",
)  # fmt: skip

_MAE = _cosine_recipe(
    "mae-vit_base_patch16-lars-16384", "facebookresearch/mae at efb2a806, FINETUNE.md "
    "and main_linprobe.py", 16384, 90, 78, rate_of_256=0.1, task="linear_probe",
    network="vit_base_patch16", weight_decay=0.0, top1=0.678,
    inferred={"steps": "the loader drops the last incomplete batch on 32 GPUs"},
    notes="The classifier follows a BatchNorm without scale and bias.",
)  # fmt: skip

RECIPES = (_BARLOW_TWINS, *_vicreg(), *_byol(), *_simclr(), *_moco_v3(), _SWAV, _MAE)
