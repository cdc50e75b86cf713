"""The study's protocol, fixed before its runs.

Data: Fashion-MNIST, of whose 60,000 training images the trainer holds out 5,000 for
validation. Also the digits of `make train`, 3,200 to train on, as rows that are cheap
to repeat; as that demo's settings had been seen before, they are no evidence. On a GPU
also CIFAR-10's JPEG files, 45,000 to train on, randomly cropped and mirrored.
Networks: `alexnet_small`, without BatchNorm and with it; `resnet_small` for CIFAR-10.
BatchNorm takes the moments of 512 images, or of the largest equal part of the batch
below that, whatever the number of devices.

Every optimizer has β = 5e-4, μ = 0.9 and one schedule: a linear warm-up from 0 over a
sixth of the epochs, then (1 − t/T)². At the baseline's and at the tuned batch size each
has six learning rates, a factor of 2 apart, whose lowest was set once from runs before
the study; at the other sizes three, around the best at the tuned size by √ scaling.
Where the best is the first or the last, another is added beyond it until it is not, for
all alike. Each is run for 10 epochs from seed 0, and the best on the validation images,
diverged runs last, for 30 epochs from seeds 1, 2 and 3 (CIFAR-10: to 5). Two rules tune
nothing: linear scaling of SGD has the baseline's best rate times the ratio of batches,
√ scaling of LARS its best rate at the tuned batch times the root of that ratio. Rows
"tuned at 30 epochs", in which every trial has 30 epochs, were added after the first
results, to see what short trials cost. Of these the row of `optax.lars`, added last,
begins with four learning rates, 10 to 80. What two rows ask for is run once.

The table has the test accuracy of the last update; nothing is chosen by test images. A
run that diverges ends, and counts with the state of its last update. Nothing is left
out.

η is 0.001, for LARC 0.02. SGD, LARC and LARS of "weights" decay the weights alone, the
others all leaves. LARS of weights is `lars_optax.lars(schedule, 5e-4)` as it comes:
parameters that it does not adapt, and layers whose norm is 0, have the ratio 0.02, the
default. In the row "others at 1" they have 1, as in MLPerf. LARC has 1 there too, and
`optax.lars`, which adapts all leaves, has 1 where a norm is 0.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import optax

import lars_optax
from examples.imagenet.config import (
    Batching,
    Config,
    Data,
    Model,
    Optimizer,
    Run,
    Split,
)
from lars_optax.recipes import Recipe

RUN = Run(layers_every=0, log_every=20, checkpoints=1)
SLOT = 512  # images of which BatchNorm takes the moments, at most
RATES, FEW = 6, 3  # learning rates at the tuned sizes, and at the others


class Stage(NamedTuple):
    """What is run at one rate."""

    epochs: int
    seeds: tuple[int, ...]
    split: Split


TUNING = Stage(10, (0,), "validation")
LONG = Stage(30, (0,), "validation")
FINAL = Stage(30, (1, 2, 3), "test")
MORE_SEEDS = {"cifar10": (1, 2, 3, 4, 5)}


class Method(NamedTuple):
    """An optimizer; `make` where the trainer has no flags for it."""

    title: str
    optimizer: Optimizer
    lowest: tuple[float, float]  # rates without and with BatchNorm, at the tuned size
    make: Callable[[Recipe, int], Any] = Recipe.optimizer
    tuning: Stage = TUNING
    rates: int = RATES  # how many learning rates are tried at first, at the tuned size

    @property
    def trains(self) -> tuple[Any, ...]:
        """Methods for which it is equal differ in how the rate is chosen alone."""
        return self.optimizer, self.make


def optax_lars(recipe: Recipe, images: int) -> Any:
    """With its defaults, but for schedule and decay, which all have."""
    return optax.lars(recipe.schedule(images), recipe.weight_decay)


def larc(recipe: Recipe, images: int) -> Any:
    """With its defaults, but for schedule and decay, which all have."""
    return lars_optax.larc(recipe.schedule(images), recipe.weight_decay or 0.0)


_SGD = Optimizer(algorithm="sgd", weight_decay=5e-4, momentum=0.9)
_LARS = replace(_SGD, algorithm="lars", fallback_ratio=0.02)
_ALL = replace(_LARS, layers="all")
_MLPERF = replace(_LARS, fallback_ratio=1.0)
METHODS = {
    "sgd": Method("SGD", _SGD, (0.025, 0.05)),
    "linear": Method("SGD, linear scaling", _SGD, (0, 0)),
    "nesterov": Method("Nesterov SGD", replace(_SGD, nesterov=True), (0.025, 0.05)),
    "lars": Method("LARS of weights, as it comes", _LARS, (2.5, 2.5)),
    "lars-sqrt": Method("LARS of weights, √ scaling", _LARS, (0, 0)),
    "lars-mlperf": Method("LARS of weights, others at 1", _MLPERF, (2.5, 2.5)),
    "lars-all": Method("LARS of all leaves", _ALL, (2.5, 2.5)),
    "optax-lars": Method("optax.lars, as it comes", _ALL, (2.5, 2.5), optax_lars),
    "larc": Method("LARC", _SGD, (0.05, 0.05), larc),
}
TUNED_LONG = {
    f"{name}-long": METHODS[name]._replace(
        title=f"{METHODS[name].title}, tuned at 30 epochs", tuning=LONG
    )
    for name in ("sgd", "nesterov", "lars-all", "lars", "optax-lars")
}
# Lower rates than these were never near the best of any LARS at 30 epochs.
TUNED_LONG["optax-lars-long"] = TUNED_LONG["optax-lars-long"]._replace(
    lowest=(10, 10), rates=4
)
METHODS |= TUNED_LONG
# `default_ratio` alone runs these: the study's tables have no rows of them.
RATIOS = {
    f"lars-{ratio:g}": Method(
        f"LARS of weights, others at {ratio:g}",
        replace(_LARS, fallback_ratio=ratio),
        (2.5, 2.5),
    )
    for ratio in (0.1, 0.005, 0.001)
}
METHODS |= RATIOS
SMALL = {"fashion-mnist": 128, "digits": 32, "cifar10": 128}  # the baseline's batch
TUNED = {"fashion-mnist": 8192, "digits": 1600, "cifar10": 8192}
LOWEST_SMALL = (0.005, 0.01)
# Methods whose rate is another's: of which method, at which batch, by which rule.
RULES = {
    "linear": ("sgd", SMALL, lars_optax.linear_scaling),
    "lars-sqrt": ("lars", TUNED, lars_optax.sqrt_scaling),
}


class Cell(NamedTuple):
    """One line of the study's tables."""

    data: str
    network: str
    batch: int
    method: str

    @property
    def name(self) -> str:
        """For the command line and folders."""
        return "/".join(map(str, self))

    @property
    def tuning(self) -> Stage:
        """What is run at every rate."""
        return METHODS[self.method].tuning

    @property
    def final(self) -> Stage:
        """What is run at the best rate."""
        return FINAL._replace(seeds=MORE_SEEDS.get(self.data, FINAL.seeds))

    def config(self, source: str, rate: float, stage: Stage, devices: int) -> Config:
        """Of runs on at most so many devices; a seed is still to be given."""
        few = -(-self.batch // SLOT)
        slots = next(n for n in range(few, self.batch + 1) if self.batch % n == 0)
        used = math.gcd(slots, devices)
        optimizer = METHODS[self.method].optimizer
        warmup = stage.epochs / 6
        network: Any = self.network
        return Config(
            data=Data(
                source=source,
                evaluate_on=stage.split,
                pixels=32 if self.data == "cifar10" else None,
            ),
            model=Model(network=network, width=0.5 if self.data == "digits" else 1.0),
            optimizer=replace(optimizer, learning_rate=rate, warmup_epochs=warmup),
            batching=Batching(
                batch_size=self.batch,
                epochs=stage.epochs,
                devices=used,
                accumulate=slots // used,
            ),
            run=RUN,
        )

    def rates(self, best: Callable[["Cell"], float | None]) -> tuple[float, ...]:
        """The first rates to try; none while those they follow from are not known."""
        norm = int(self.network != "alexnet_small")
        if self.method in RULES:
            method, batch, scaling = RULES[self.method]
            base = self._replace(batch=batch[self.data], method=method)
            rate = best(base)
            return () if rate is None else (scaling(rate, self.batch, base.batch),)
        if self.batch == SMALL[self.data] and self.method == "sgd":
            return _ladder(LOWEST_SMALL[norm], RATES)
        tuned = self._replace(batch=TUNED[self.data])
        lowest = METHODS[self.method].lowest[norm]
        if self.batch == tuned.batch:
            return _ladder(lowest, METHODS[self.method].rates)
        if self.batch == SMALL[self.data]:
            scaled = lars_optax.sqrt_scaling(lowest, self.batch, tuned.batch)
            return _ladder(scaled, RATES)
        rate = best(tuned)
        if rate is None:
            return ()
        middle = lars_optax.sqrt_scaling(rate, self.batch, tuned.batch)
        return _ladder(middle / 2, FEW)


def _ladder(lowest: float, n: int) -> tuple[float, ...]:
    return tuple(lowest * 2**k for k in range(n))


def cells() -> list[Cell]:
    """All of them; what the claims rest on first."""
    networks = ("alexnet_small", "alexnet_bn_small")
    found = [Cell("digits", networks[0], *each) for each in
             ((32, "sgd"), (1600, "sgd"), (1600, "lars-all"))]  # fmt: skip
    main = ((128, "sgd"), (8192, "sgd"), (8192, "lars"))
    done = ("sgd", "lars", "lars-sqrt", *TUNED_LONG, *RATIOS)
    others = [(8192, name) for name in METHODS if name not in done]
    rule = tuple((n, "lars-sqrt") for n in (512, 1024, 2048, 4096, 16_384))
    more = [(n, name) for n in (2048, 16_384) for name in ("sgd", "nesterov", "lars")]
    more += [*((8192, name) for name in TUNED_LONG), (128, "lars")]
    for part in (main, others, rule, more):
        found += [
            Cell("fashion-mnist", net, *each) for net in networks for each in part
        ]
    largest = [(32_768, name) for name in ("sgd", "nesterov", "lars", "lars-sqrt")]
    parts = (*main, *others, *rule, *more, *largest)
    return found + [Cell("cifar10", "resnet_small", *each) for each in parts]
