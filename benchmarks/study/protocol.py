"""The study's protocol, fixed before its runs.

Most rows train on Fashion-MNIST. Of its 60,000 training images the trainer holds out
5,000 for validation. The rows on the 3,200 digits of `make train` are cheap to repeat.
They do not count as evidence, because the settings of that demo had been seen before.
On a GPU there are also rows on CIFAR-10: JPEG files, 45,000 to train on, randomly
cropped and mirrored. The networks are `alexnet_small`, without and with BatchNorm, and
`resnet_small` for CIFAR-10. BatchNorm takes the moments of 512 images, whatever the
number of devices. If the batch does not divide into parts of 512, it takes those of the
largest equal part below that.

Every optimizer has weight decay β = 5e-4, momentum μ = 0.9 and the same schedule. The
learning rate grows linearly from 0 over a sixth of the epochs and then falls as
(1 − t/T)², where t is the number of updates done and T that of all updates.

Each optimizer tries several learning rates, a factor of 2 apart. At the baseline's
batch size and at the large one for which rates are tuned it begins with six. The lowest
of these was set once, from runs before the study. At the other batch sizes it begins
with three, around the best rate at the tuned batch size times the square root of the
ratio of batch sizes. If the best rate is the lowest or the highest that was tried, the
next rate beyond it is tried too. This is repeated until the best rate lies between
others, for all optimizers alike. A trial trains for 10 epochs from seed 0. The rate
with the best accuracy on the validation images is chosen. A rate that diverged is
chosen only if all did. With it the network is trained for 30 epochs from seeds 1, 2 and
3, on CIFAR-10 from seeds 1 to 5.

Two rows take their rate from a rule, without trials. Linear scaling of SGD takes the
baseline's best rate times the ratio of batch sizes. √ scaling of LARS takes its best
rate at the tuned batch size times the square root of the ratio.

The rows "tuned at 30 epochs" show what short trials cost: every trial has 30 epochs.
They were added after the first results. The row of `optax.lars` among them was added
last and begins with four learning rates, 10 to 80. Runs that two rows share are run
once.

The rows of 90 epochs have the proportions of the paper's run of ResNet-50 with the
largest batch. This run has 90 epochs too:

| | batch size | share of the images | updates |
| --- | --- | --- | --- |
| paper | 32,768 | 2.6 % | 3,519 |
| large batch here | 2,048 | 3.7 % | 2,417 |
| baseline here | 16 | – | 309,375 |

The learning rate grows over 5 of the 90 epochs, and all else is as above. Each
optimizer begins with three learning rates. A trial has all 90 epochs and seed 1. It is
evaluated on the validation images, by which the rate is chosen, and on the test images.
Seeds 2 and 3 follow at the chosen rate. The trials of the baseline have 30 epochs.

The rows with a suggested rate test a rule that needs no trials. For T updates of B
images the suggested rate of LARS is 19 · (B/T)^¼, but at most 40. The rule and its
factor were chosen before these rows were run, from published rates and from the trials
of the other rows. The rows "rates around the suggested one" begin with half, once and
twice the suggested rate. A trial has the full length and seed 1, and is evaluated on
the validation and on the test images. Seeds 2 and 3 follow at the suggested and at the
best rate.

The table has the test accuracy after the last update; nothing is chosen by test images.
A run that diverges ends, and counts with the accuracy after its last update. Nothing is
left out.

The trust coefficient η is 0.001, for LARC 0.02. SGD, LARC and LARS of weights apply
weight decay to the weights alone, the others to all leaves. "LARS of weights, defaults"
is `lars_optax.lars(schedule, 5e-4)`. Its trust ratio is 0.02, the default
`fallback_ratio`, for parameters that are not adapted and for layers whose norm is 0. In
the row "fallback ratio 1" it is 1 there, as in MLPerf, and so it is for LARC.
`optax.lars` adapts all leaves and has a ratio of 1 where a norm is 0.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import optax

import lars_optax
from examples.imagenet import config
from examples.imagenet.config import Batching, Config, Data, Model, Optimizer, Run
from lars_optax.recipes import Recipe

DATA = "fashion-mnist"
RUN = Run(layers_every=0, log_every=20, checkpoints=1)
NETWORKS = {"alexnet_small": "without BatchNorm", "alexnet_bn_small": "with BatchNorm"}
SMALL = {"fashion-mnist": 128, "digits": 32, "cifar10": 128}  # the baseline's batch
TUNED = {"fashion-mnist": 8192, "digits": 1600, "cifar10": 8192}
BN_IMAGES = 512  # of which BatchNorm takes the moments, at most
# Learning rates tried at first: at the baseline's and the tuned batch size, at others.
RATES, FEW = 6, 3


class Stage(NamedTuple):
    """The epochs, seeds and evaluation images of the runs at one learning rate."""

    epochs: int
    seeds: tuple[int, ...]
    split: config.Split


TUNING = Stage(10, (0,), "validation")
LONG = Stage(30, (0,), "validation")
FINAL = Stage(30, (1, 2, 3), "test")
ABLATION = Stage(30, (1, 2, 3), "validation")
MORE_SEEDS = {"cifar10": (1, 2, 3, 4, 5)}
# The rows of 90 epochs: the batch sizes of the baseline and of the others.
FEW_IMAGES, MANY_IMAGES = 16, 2048
WHOLE, WHOLE_FINAL = Stage(90, (1,), "validation"), Stage(90, (1, 2, 3), "test")
TRAINED = 55_000  # images of Fashion-MNIST that are not held out


class Method(NamedTuple):
    """An optimizer that the study compares, and how its learning rate is tuned.

    `make` builds the optimizer if the trainer cannot build it from `optimizer`.
    """

    title: str
    optimizer: Optimizer
    # The lowest learning rates without and with BatchNorm, or None if a rule gives the
    # rates. They belong to the tuned batch size, for 90 epochs to the row's own.
    lowest: tuple[float, float] | None
    make: Callable[[Recipe, int], Any] = Recipe.optimizer
    tuning: Stage = TUNING
    rates: int = RATES  # number of learning rates tried at first, 1 to tune nothing
    final: Stage = FINAL
    warmup: float = 1 / 6  # as a fraction of the epochs

    @property
    def trains(self) -> tuple[Any, ...]:
        """What determines the optimizer, except for the learning rate.

        Methods with equal `trains` differ only in how their learning rate is chosen.
        """
        return self.optimizer, self.make, self.warmup


def optax_lars(recipe: Recipe, images: int) -> Any:
    """Returns `optax.lars` with the study's schedule and weight decay.

    Its other arguments have their defaults.
    """
    return optax.lars(recipe.schedule(images), recipe.weight_decay)


def larc(recipe: Recipe, images: int) -> Any:
    """Returns `lars_optax.larc` with the study's schedule and weight decay.

    Its other arguments have their defaults.
    """
    return lars_optax.larc(recipe.schedule(images), recipe.weight_decay or 0.0)


_SGD = Optimizer(algorithm="sgd", weight_decay=5e-4, momentum=0.9)
_LARS = replace(_SGD, algorithm="lars", fallback_ratio=0.02)
STUDIED = replace(_LARS, warmup_epochs=ABLATION.epochs / 6)
_ALL = replace(_LARS, layers="all")
_MLPERF = replace(_LARS, fallback_ratio=1.0)
METHODS = {
    "sgd": Method("SGD", _SGD, (0.025, 0.05)),
    "linear": Method("SGD, linear scaling", _SGD, None, rates=1),
    "nesterov": Method("Nesterov SGD", replace(_SGD, nesterov=True), (0.025, 0.05)),
    "lars": Method("LARS of weights, defaults", _LARS, (2.5, 2.5)),
    "lars-sqrt": Method("LARS of weights, √ scaling", _LARS, None, rates=1),
    "lars-mlperf": Method("LARS of weights, fallback ratio 1", _MLPERF, (2.5, 2.5)),
    "lars-all": Method("LARS of all leaves", _ALL, (2.5, 2.5)),
    "optax-lars": Method("optax.lars, defaults", _ALL, (2.5, 2.5), optax_lars),
    "larc": Method("LARC", _SGD, (0.05, 0.05), larc),
}
TUNED_LONG = {
    f"{name}-long": METHODS[name]._replace(
        title=f"{METHODS[name].title}, tuned at 30 epochs", tuning=LONG
    )
    for name in ("sgd", "nesterov", "lars-all", "lars", "optax-lars")
}
# At 30 epochs lower rates were never near the best of any LARS.
_FROM_TEN = TUNED_LONG["optax-lars-long"]._replace(lowest=(10, 10), rates=4)
TUNED_LONG["optax-lars-long"] = _FROM_TEN
# These are run by `default_ratio` alone and are in no table of the study.
RATIOS = {
    f"lars-{ratio:g}": METHODS["lars"]._replace(
        title=f"LARS of weights, fallback ratio {ratio:g}",
        optimizer=replace(_LARS, fallback_ratio=ratio),
    )
    for ratio in (0.1, 0.005, 0.001)
}
_SGD_RATES, _LARS_RATES = (0.1, 0.2), (10, 10)
PROPORTIONS = {
    f"{name}-90": METHODS[name]._replace(
        lowest=lowest, rates=FEW, tuning=WHOLE, final=WHOLE_FINAL, warmup=1 / 18
    )
    for name, lowest in {
        "sgd": _SGD_RATES,
        "nesterov": _SGD_RATES,
        "lars": None,
        "lars-all": _LARS_RATES,
        "optax-lars": _LARS_RATES,
    }.items()
}
PROPORTIONS["baseline-90"] = PROPORTIONS["sgd-90"]._replace(
    title="SGD, the baseline", lowest=(0.01, 0.02), tuning=LONG._replace(seeds=(1,))
)
PROPORTIONS["lars-suggested-90"] = PROPORTIONS["lars-90"]._replace(
    title="LARS of weights, suggested rate", rates=1
)
SUGGESTED = {
    "lars-suggested": METHODS["lars"]._replace(
        title="LARS of weights, suggested rate", lowest=None, rates=1
    ),
    "lars-around": METHODS["lars"]._replace(
        title="LARS of weights, rates around the suggested one",
        lowest=None,
        tuning=LONG._replace(seeds=(1,)),
        rates=FEW,
    ),
}
METHODS |= TUNED_LONG | RATIOS | PROPORTIONS | SUGGESTED
LOWEST_SMALL = (0.005, 0.01)  # of the baseline, without and with BatchNorm
# Methods that scale a rate: of which method, at which batch size, by which rule.
RULES = {
    "linear": ("sgd", SMALL, lars_optax.linear_scaling),
    "lars-sqrt": ("lars", TUNED, lars_optax.sqrt_scaling),
}


class Cell(NamedTuple):
    """A row of the study's tables: an optimizer, data, a network and a batch size."""

    data: str
    network: str
    batch: int
    method: str

    @property
    def name(self) -> str:
        """The row's name on the command line, such as digits/alexnet_small/32/sgd."""
        return "/".join(map(str, self))

    @property
    def tuning(self) -> Stage:
        """The epochs, seed and images of the trials that choose the learning rate."""
        return METHODS[self.method].tuning

    @property
    def final(self) -> Stage:
        """The epochs, seeds and images of the runs at the chosen learning rate."""
        final = METHODS[self.method].final
        return final._replace(seeds=MORE_SEEDS.get(self.data, final.seeds))

    def config(self, source: str, rate: float, stage: Stage, devices: int) -> Config:
        """Returns the trainer's configuration of a run at the learning rate `rate`.

        `source` is the trainer's --data. The run uses at most `devices` devices. The
        caller sets the seed.
        """
        few, method = -(-self.batch // BN_IMAGES), METHODS[self.method]
        parts = next(n for n in range(few, self.batch + 1) if self.batch % n == 0)
        used = math.gcd(parts, devices)
        warmup = method.warmup * stage.epochs
        rates: Any = {"learning_rate": rate, "warmup_epochs": warmup}
        pixels = 32 if self.data == "cifar10" else None
        network: Any = self.network
        return Config(
            data=Data(source=source, evaluate_on=stage.split, pixels=pixels),
            model=Model(network=network, width=0.5 if self.data == "digits" else 1.0),
            optimizer=replace(method.optimizer, **rates),
            batching=Batching(
                batch_size=self.batch,
                epochs=stage.epochs,
                devices=used,
                accumulate=parts // used,
            ),
            run=RUN,
        )

    @property
    def suggested_rate(self) -> float:
        """The learning rate of LARS that the rule under test suggests."""
        updates = lars_optax.epochs_to_steps(self.final.epochs, TRAINED, self.batch)
        return round(lars_optax.suggested_learning_rate(self.batch, updates), 1)

    def rates(self, best: Callable[["Cell"], float | None]) -> tuple[float, ...]:
        """Returns the learning rates that are tried first for this row of the tables.

        They may depend on another row's best rate. `best` returns that rate, or None
        if it is not known yet; then this returns no rates.
        """
        norm, method = int(self.network != "alexnet_small"), METHODS[self.method]
        if self.method in RULES:
            name, batch, scaling = RULES[self.method]
            base = self._replace(batch=batch[self.data], method=name)
            rate = best(base)
            return () if rate is None else (scaling(rate, self.batch, base.batch),)
        if method.lowest is None:
            return _around(self.suggested_rate, method.rates)
        if self.batch == SMALL[self.data] and self.method == "sgd":
            return _doublings(LOWEST_SMALL[norm], RATES)
        if self.method in PROPORTIONS:
            return _doublings(method.lowest[norm], method.rates)
        tuned = self._replace(batch=TUNED[self.data])

        def scale(rate: float) -> float:
            return lars_optax.sqrt_scaling(rate, self.batch, tuned.batch)

        if self.batch in (SMALL[self.data], tuned.batch):
            return _doublings(scale(method.lowest[norm]), method.rates)
        rate = best(tuned)
        return () if rate is None else _around(scale(rate), FEW)


def _doublings(lowest: float, n: int) -> tuple[float, ...]:
    return tuple(lowest * 2**k for k in range(n))


def _around(rate: float, n: int) -> tuple[float, ...]:
    return _doublings(rate / 2 ** (n // 2), n)


def cells() -> list[Cell]:
    """Returns all rows of the study's tables, in the order in which they are trained.

    For each data set, the rows that the conclusions rest on come first.
    """
    digits = ((32, "sgd"), (1600, "sgd"), (1600, "lars-all"))
    found = [Cell("digits", "alexnet_small", *each) for each in digits]
    main = ((128, "sgd"), (8192, "sgd"), (8192, "lars"))
    done = ("sgd", "lars", "lars-sqrt", *TUNED_LONG, *RATIOS, *PROPORTIONS, *SUGGESTED)
    others = [(8192, name) for name in METHODS if name not in done]
    rule = [(n, "lars-sqrt") for n in (512, 1024, 2048, 4096, 16_384)]
    more = [(n, name) for n in (2048, 16_384) for name in ("sgd", "nesterov", "lars")]
    more += [*((8192, name) for name in TUNED_LONG), (128, "lars")]
    parts = (main, others, rule, more)
    found += [
        Cell(DATA, net, *each) for part in parts for net in NETWORKS for each in part
    ]
    largest = [(32_768, name) for name in ("sgd", "nesterov", "lars", "lars-sqrt")]
    cifar10 = (*main, *others, *rule, *more, *largest)
    found += [Cell("cifar10", "resnet_small", *each) for each in cifar10]
    return found + suggested() + proportions()


def suggested() -> list[Cell]:
    """Returns the rows with a suggested learning rate and with others around it.

    Those around it come first, because a trial there is also a run at that rate.
    """
    return [
        Cell(DATA, net, batch, name)
        for batch in (8192, 2048, 512, 16_384)
        for net in NETWORKS
        for name in ("lars-around", "lars-suggested")
    ]


def proportions() -> list[Cell]:
    """Returns the rows of 90 epochs, in the order in which they are trained."""
    parts = (
        ("baseline-90", "lars-all-90"),
        ("lars-90", "sgd-90"),
        ("nesterov-90", "optax-lars-90", "lars-suggested-90"),
    )
    return [
        Cell(DATA, net, FEW_IMAGES if name == "baseline-90" else MANY_IMAGES, name)
        for part in parts
        for net in reversed(NETWORKS)
        for name in part
    ]
