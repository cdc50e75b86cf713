"""What the paper leaves open, a choice at a time, on the digits of `make train`.

    python -m benchmarks.study.ablations [--only TITLE …] [--devices N]

LARS at a batch of 1,600, its other choices as in the study: every variant has the same
six rates, seeds and 30 epochs, and all of it is published, so nothing is chosen. The
scores are of the validation images. Digits are few and easy: a difference here says
that a choice can matter, equality not that it never does. Each variant adds its runs to
benchmarks/results/ablations.jsonl; what is there is not run again.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import optax

import lars_optax
from benchmarks.study import runs as study_runs
from benchmarks.study.page import NETWORKS
from benchmarks.study.protocol import METHODS, RUN, TUNED, Cell, Stage
from examples.imagenet.config import Optimizer
from examples.imagenet.data.dataset import Dataset
from examples.imagenet.data.sources import load
from examples.imagenet.log import strict_json
from examples.imagenet.provenance import provenance
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices
from lars_optax.recipes import Recipe

RESULTS = Path("benchmarks/results/ablations.jsonl")
STAGE = Stage(30, (1, 2, 3), "validation")
RATES = tuple(5.0 * 2**k for k in range(6))
Record = dict[str, Any]


class Variant(NamedTuple):
    """A choice; `make` where the trainer has no flag for it."""

    title: str
    optimizer: Optimizer
    make: Callable[[Recipe, int], Any] = Recipe.optimizer


def joint(recipe: Recipe, images: int) -> Any:
    """The denominator of `optax.lars`."""
    return lars_optax.lars(
        recipe.schedule(images),
        recipe.weight_decay or 0.0,
        momentum=recipe.momentum,
        denominator="joint",
        fallback_ratio=recipe.fallback_ratio,
    )


def post(recipe: Recipe, images: int) -> Any:
    """The momentum of the decayed gradients, then λ of that."""
    decay, mask = recipe.weight_decay or 0.0, lars_optax.exclude_bias_and_norm
    return optax.chain(
        optax.add_decayed_weights(decay, mask),
        optax.trace(recipe.momentum or 0.0),
        lars_optax.scale_by_lars(
            denominator="joint", fallback_ratio=recipe.fallback_ratio
        ),
        optax.scale_by_learning_rate(recipe.schedule(images)),
    )


_LARS = replace(METHODS["lars"].optimizer, warmup_epochs=STAGE.epochs / 6)


def _others_at(ratio: float) -> Variant:
    return Variant(
        f"weights, others at {ratio:g}", replace(_LARS, fallback_ratio=ratio)
    )


def _warm_up(share: float, title: str) -> Variant:
    epochs = share * STAGE.epochs
    return Variant(f"{title} of the epochs", replace(_LARS, warmup_epochs=epochs))


# The first of each is the study's own and is run once.
STUDY = "as in the study"
ABLATIONS = {
    "denominator": (
        Variant("‖g‖ + β‖w‖", _LARS),
        Variant("‖g + βw‖", _LARS, joint),
    ),
    "momentum": (
        Variant("after the rate (scaled)", _LARS),
        Variant("before it (unscaled)", replace(_LARS, momentum_order="unscaled")),
        # Here the momentum does not lengthen the steps of a layer with a λ.
        Variant("before λ and the rate (post)", _LARS, post),
    ),
    "excluded": (
        _others_at(0.02),
        _others_at(1),
        _others_at(0.1),
        _others_at(0.005),
        _others_at(0.001),
        Variant("all leaves", replace(_LARS, layers="all")),
    ),
    "decay": (
        Variant("from the end of the warm-up", _LARS),
        Variant("from step 0", replace(_LARS, decay_from_start=True)),
    ),
    "warm-up": (
        _warm_up(1 / 6, "a sixth"),
        _warm_up(0, "none"),
        _warm_up(1 / 3, "a third"),
        _warm_up(1 / 2, "half"),
    ),
}


def name(ablation: str, variant: Variant) -> Record:
    """What tells a variant's runs; those of the study stand for every ablation."""
    if variant == ABLATIONS[ablation][0]:
        return {"ablation": STUDY, "variant": STUDY}
    return {"ablation": ablation, "variant": variant.title}


def run(
    variant: Variant, key: Record, data: Dataset, about: Record, devices: list[Any]
) -> None:
    """All its runs that are not there, seeds of a rate together."""
    wanted = [key | {"learning_rate": rate} for rate in RATES]
    have = study_runs.read(RESULTS).records
    for one in wanted:
        if any(one.items() <= record.items() for record in have):
            continue
        cell = Cell("digits", key["network"], TUNED["digits"], "lars")
        config = cell.config("mnist", one["learning_rate"], STAGE, len(devices))
        optimizer = replace(variant.optimizer, learning_rate=one["learning_rate"])
        config = replace(config, optimizer=optimizer)
        some = devices[: config.batching.devices]
        experiment = Experiment.of(config, data, some, variant.make)
        runs = [replace(RUN, seed=seed, out="runs/ablation") for seed in STAGE.seeds]
        found = [
            one | {"seed": run.seed} | asdict(fit(experiment, run)) for run in runs
        ]
        with RESULTS.open("a") as file:
            file.writelines(strict_json(row | about) + "\n" for row in found)
        scores = ", ".join(f"{row['accuracy']:.2%}" for row in found)
        print(*one.values(), scores, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--devices", type=int, help="to split a CPU into: its cores")
    given = parser.parse_args()
    data, about = load("mnist"), provenance()
    devices = start_devices(given.devices)
    for ablation in given.only:
        for variant in ABLATIONS[ablation]:
            for network in NETWORKS:
                key = name(ablation, variant) | {"network": network}
                run(variant, key, data, about, devices)


if __name__ == "__main__":
    main()
