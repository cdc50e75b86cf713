"""What one training run is: frozen values with units, defaults and bounds.

Each group is checked when it is made; a value out of bounds raises ValueError with
the flag's name, the value and what to give instead. Knows no arrays and no devices.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

Split = Literal["validation", "test"]
Network = Literal["alexnet-small", "alexnet-bn-small"]


def _check(ok: bool, flag: str, value: object, remedy: str) -> None:
    if not ok:
        raise ValueError(f"{flag}: got {value!r}; {remedy}")


@dataclass(frozen=True)
class Data:
    """What is read, and which images are held out."""

    source: Annotated[str, tyro.conf.arg(name="data", metavar="mnist|DIR")] = "mnist"
    """`mnist`: 5,000 images of a wheel. DIR: IDX files of MNIST or Fashion-MNIST."""
    validation_images: int = 5_000
    """Held out of DIR's training file [images]; `mnist` is split 3,200/800/1,000."""
    evaluate_on: Split = "validation"
    """Images the accuracy is measured on. Choose on validation; report on test."""

    def __post_init__(self) -> None:
        _check(
            self.validation_images >= 0,
            "--validation-images",
            self.validation_images,
            "give 0 or more",
        )


@dataclass(frozen=True)
class Model:
    """The network."""

    network: Network = "alexnet-small"
    """Three convolutions and two dense layers; `-bn` normalises each convolution."""
    width: float = 1.0
    """Multiplies every layer's number of channels except the last's."""

    def __post_init__(self) -> None:
        ok = math.isfinite(self.width) and self.width > 0
        _check(ok, "--width", self.width, "give a positive number")


@dataclass(frozen=True)
class Optimizer:
    """The rule and its schedule: linear warm-up from 0, polynomial decay to 0."""

    name: Annotated[Literal["sgd", "lars"], tyro.conf.arg(name="optimizer")] = "lars"
    """Momentum SGD in Caffe's order (rate inside the momentum), or LARS."""
    learning_rate: float = 10.0
    """Peak rate γ, for the whole batch."""
    warmup_epochs: float = 5.0
    """Epochs in which γ rises from 0 [epochs]."""
    power: float = 2.0
    """Power of the decay, which ends at the last step."""
    momentum: float = 0.9
    """μ."""
    nesterov: bool = False
    """Look one momentum step ahead."""
    weight_decay: float = 5e-4
    """β, per step, not divided by anything."""
    trust_coefficient: float = 0.001
    """η of LARS."""
    fallback_ratio: float = 0.02
    """LARS: the ratio of biases; without BatchNorm the raw γ, 1, is too much."""
    layers: Literal["weights", "all"] = "weights"
    """Leaves that get decay and a trust ratio: all but biases and norms, or all."""

    def __post_init__(self) -> None:
        for flag, low in (
            ("learning_rate", 0.0),
            ("warmup_epochs", 0.0),
            ("power", 0.0),
            ("weight_decay", 0.0),
            ("fallback_ratio", 0.0),
        ):
            value = getattr(self, flag)
            ok = math.isfinite(value) and value >= low
            name = "--" + flag.replace("_", "-")
            _check(ok, name, value, "give a finite number, 0 or more")
        ok = math.isfinite(self.trust_coefficient) and self.trust_coefficient > 0
        _check(ok, "--trust-coefficient", self.trust_coefficient, "give one above 0")
        _check(0 <= self.momentum < 1, "--momentum", self.momentum, "give 0 ≤ μ < 1")


@dataclass(frozen=True)
class Run:
    """How long, on what, and where the results go."""

    batch_size: int = 32
    """Images in one update, over all devices [images]."""
    epochs: int = 10
    """Passes over the training images, each without what fills no batch [epochs]."""
    seed: int = 0
    """Sets the initial weights and the order of the images, never the split."""
    eval_batch_size: int = 1_000
    """Images evaluated at once, over all devices; padded, never dropped [images]."""
    devices: int | None = None
    """Devices to use. Default: every local GPU, or 4 virtual devices on a CPU."""
    log_every: int = 10
    """Steps fetched from the devices at once for the log [steps]."""
    out: str = "runs/imagenet"
    """Folder for log.jsonl and curves.png; an earlier run's are replaced."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "eval_batch_size", "log_every"):
            flag = "--" + name.replace("_", "-")
            _check(getattr(self, name) > 0, flag, getattr(self, name), "give 1 or more")
        _check(0 <= self.seed < 2**32, "--seed", self.seed, "give 0 ≤ seed < 2³²")
        ok = self.devices is None or self.devices > 0
        _check(ok, "--devices", self.devices, "give 1 or more")


@dataclass(frozen=True)
class Config:
    """One run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        _check(
            self.optimizer.warmup_epochs < self.run.epochs,
            "--warmup-epochs",
            self.optimizer.warmup_epochs,
            f"give fewer than --epochs, {self.run.epochs}",
        )


def check_batch(batch_size: int, devices: int, examples: int) -> None:
    """Refuses a batch that does not divide over the devices or exceeds the data."""
    if batch_size % devices:
        low = batch_size // devices * devices
        near = [str(n) for n in (low, low + devices) if 0 < n <= examples]
        raise ValueError(
            f"--batch-size: {batch_size} does not divide over {devices} devices;"
            f" the nearest sizes that do: {', '.join(near)}"
        )
    if batch_size > examples:
        largest = examples // devices * devices
        raise ValueError(
            f"--batch-size: {batch_size} exceeds the {examples} training images;"
            f" give at most {largest}"
        )
