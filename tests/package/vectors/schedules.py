"""The learning rates that the sources' own schedules have in the published runs.

The function of each source takes the folder with all sources, the file of the schedule
and the flags of a run. It returns a `Run`. A value that the flags leave out is the
default in the source's own file. The batches of an epoch are those of PyTorch's
DataLoader with the source's sampler, number of processes and treatment of the last
batch.
"""

import ast
import math
import re
import shlex
import types
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax.numpy as jnp
import repositories
from repositories import (
    BARLOW_TWINS,
    BYOL_SCHEDULE,
    MAE_SCHEDULE,
    MOCO_V3_SCHEDULE,
    SIMCLR_SCHEDULE,
    SWAV,
    VICREG,
    Source,
    function,
)
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

IMAGENET = 1_281_167


class Run(NamedTuple):
    """A published run: its warm-up, all of its steps, and the rate at a step."""

    warmup: int
    total: int
    rate: Callable[[int], Any]

    def knots(self) -> list[int]:
        """Both ends of the warm-up and of the decay, and the middle of the decay."""
        warmup, total, _ = self
        around = [warmup - 1, warmup, warmup + 1]
        return [0, 1, *around, (warmup + total) // 2, total - 1]


def loader(batch_size, processes, drop_last):
    """The batches that one of several processes takes from ImageNet in an epoch."""
    images = range(IMAGENET)
    sampler = DistributedSampler(images, num_replicas=processes, rank=0)
    each = batch_size // processes
    return DataLoader(images, each, sampler=sampler, drop_last=drop_last)


def rate_of(adjust):
    """The rate that `adjust` sets in the first group of a PyTorch optimizer."""

    def rate(step):
        optimizer = SimpleNamespace(param_groups=[{}, {}])
        adjust(optimizer, step)
        return optimizer.param_groups[0]["lr"]

    return rate


def barlow_twins(sources, source):
    module = source.load(sources, "PIL", "torchvision", "torchvision.transforms")
    arguments = module.parser.parse_args(["data"])
    batches = loader(arguments.batch_size, 16, False)

    def adjust(optimizer, step):
        module.adjust_learning_rate(arguments, optimizer, batches, step)

    n = len(batches)
    return Run(10 * n, arguments.epochs * n, rate_of(adjust))


def vicreg(sources, source, flags, processes):
    unused = ("torchvision", "torchvision.datasets", "augmentations", "distributed")
    module = source.load(sources, *unused, "resnet")
    arguments = module.get_arguments().parse_args(["--data-dir", "", *flags.split()])
    batches = loader(arguments.batch_size, processes, False)

    def adjust(optimizer, step):
        module.adjust_learning_rate(arguments, optimizer, batches, step)

    n = len(batches)
    return Run(10 * n, arguments.epochs * n, rate_of(adjust))


def of_epochs(adjust, arguments, batches):
    """A run whose schedule takes the epoch as a float."""
    n = len(batches)

    def at(optimizer, step):
        epoch, batch = divmod(step, n)
        adjust(optimizer, epoch + batch / n, arguments)

    return Run(arguments.warmup_epochs * n, arguments.epochs * n, rate_of(at))


def moco_v3(sources, source, flags):
    """`main_worker` scales the rate by the batch size of all 16 GPUs."""
    unused = ("torch.utils.tensorboard", "moco", "moco.builder", "moco.loader")
    unused += ("moco.optimizer", "vits", "torchvision", "torchvision.models")
    unused += ("torchvision.transforms", "torchvision.datasets")
    module = source.load(sources, *unused)
    arguments = module.parser.parse_args(["data", *flags.split()])
    arguments.lr = arguments.lr * arguments.batch_size / 256
    batches = loader(arguments.batch_size, 16, True)
    return of_epochs(module.adjust_learning_rate, arguments, batches)


def mae(sources, source, flags):
    """`main` scales the rate by the batch size of all 32 GPUs."""
    unused = ("torch.utils.tensorboard", "torchvision", "torchvision.transforms")
    unused += ("torchvision.datasets", "timm.models", "timm.models.layers", "util")
    unused += ("util.misc", "util.pos_embed", "util.lars", "util.crop", "models_vit")
    timm = SimpleNamespace(__version__="0.3.2")
    probe = source._replace(path="main_linprobe.py")
    module = probe.load(sources, *unused, "engine_finetune", timm=timm)
    arguments = module.get_args_parser().parse_args(flags.split())
    batch_size = arguments.batch_size * arguments.accum_iter * 32
    arguments.lr = arguments.blr * batch_size / 256
    adjust = source.load(sources).adjust_learning_rate
    return of_epochs(adjust, arguments, loader(batch_size, 32, True))


def swav(sources, source):
    """The flags are those of the script, which runs on 64 GPUs."""
    script = source._replace(path="scripts/swav_800ep_pretrain.sh").read(sources)
    command = script.replace("\\\n", " ").split("main_swav.py")[1]
    unused = ("apex", "apex.parallel", "apex.parallel.LARC", "src", "src.utils")
    unused += ("src.multicropdataset", "src.resnet50")
    parser = source.load(sources, *unused).parser
    arguments = parser.parse_args(shlex.split(command))
    batches = loader(arguments.batch_size * 64, 64, True)
    rates = repositories.swav_schedule(sources, arguments, batches)
    n = len(batches)
    return Run(arguments.warmup_epochs * n, arguments.epochs * n, rates.__getitem__)


def byol(sources, source, epochs):
    dataset = source._replace(path="byol/utils/dataset.py")
    unused = "tensorflow", "tensorflow.compat.v2", "tensorflow_datasets"
    dataset = dataset.load(sources, *unused)
    configs = source._replace(path="byol/configs/byol.py")
    modules = {"byol.utils": SimpleNamespace(dataset=dataset)}
    config = configs.load(sources, **modules).get_config(epochs, 4096)
    schedule = config["lr_schedule_config"]
    rate = partial(
        source.load(sources).learning_schedule,
        batch_size=config["batch_size"],
        total_steps=config["max_steps"],
        **schedule,
    )
    warmup, total = schedule["warmup_steps"], config["max_steps"]
    return Run(warmup, total, lambda step: rate(jnp.asarray(step)))


def with_flags(source, sources, *unused, **modules):
    """A file as a module, and the defaults of the flags that it defines."""
    flags = mock.MagicMock()
    absl = SimpleNamespace(flags=flags, app=None, logging=None)
    module = source.load(sources, *unused, absl=absl, **modules)
    defaults = {}
    for kind, arguments, options in flags.mock_calls:
        if kind.startswith("DEFINE_"):
            name, *rest = arguments
            defaults[name] = rest[0] if rest else options["default"]
    return module, defaults


def simclr(sources, source, flags):
    """The schedule of the version for TensorFlow 2, with the defaults of `run.py`."""
    import tensorflow as tf

    unused = ("resnet", "data", "model", "model_util", "tensorflow_datasets")
    unused += ("tensorflow_hub", "tensorflow", "tensorflow.compat.v1")
    run = source._replace(path="run.py")
    _, defaults = with_flags(run, sources, *unused)
    model = source.load(sources, "data_util", "lars_optimizer", "resnet")
    chosen = model.FLAGS = SimpleNamespace(**defaults | flags)
    schedule = model.WarmUpAndCosineDecay(chosen.learning_rate, IMAGENET)
    warmup = int(chosen.warmup_epochs * IMAGENET // chosen.train_batch_size)
    total = model.get_train_steps(IMAGENET)
    return Run(warmup, total, lambda t: schedule(tf.constant(t, tf.float32)))


GOOGLE = "Google/benchmarks/resnet"
ROUNDS = {
    "v0.6": "f312518c2d6107eec983750eed23950f1f0c8a0e",
    "v0.7": "0a8a85a209c8e45b661596c382cc20f4e32fd2fe",
    "v1.0": "50619b5df63f1d646715a82c1fb8c35f271e25fa",
}


def google(version, folder, file="lars_util.py"):
    """A file of Google's ResNet-50 in a round of MLPerf Training."""
    repository = f"mlcommons/training_results_{version}"
    path = f"{GOOGLE}/implementations/{folder}/{file}"
    return Source(repository, ROUNDS[version], path)


def mlperf(sources, source, command):
    """Google's `lars_util.py` for TensorFlow 1, with the flags of a command.

    It builds the optimizer from the epoch, which is computed as in `resnet_main.py`.
    The optimizer is a placeholder that keeps its learning rate.
    """
    import tensorflow as tf

    tf1, optimizers = tf.compat.v1, mock.MagicMock()
    contrib = SimpleNamespace(opt=optimizers)
    old = types.ModuleType("tensorflow")
    old.contrib, old.__getattr__ = contrib, partial(getattr, tf1)
    modules = {"tensorflow": old, "REDACTED.tensorflow.contrib": contrib}
    unused = "REDACTED.tensorflow_models.mlperf.models.rough.mlp_log", "mlp_log"
    module, flags = with_flags(source, sources, *unused, **modules)
    text = source._replace(path=f"{GOOGLE}/{command}").read(sources)
    numbers = re.findall(r"--(\w+)=([-\d.e]+)(?=[\s;]|$)", text)
    for name, number in numbers:
        value = ast.literal_eval(number)
        flags[name] = float(value) if isinstance(flags.get(name), float) else value
    flags = {"num_train_images": IMAGENET, "poly_rate": 0.0, "momentum": 0.9} | flags
    module.FLAGS = SimpleNamespace(**flags)
    total, graph = flags["train_steps"], tf.Graph()
    with graph.as_default():
        step = tf1.train.get_or_create_global_step()
        per_epoch = IMAGENET / flags["train_batch_size"]
        decay = tf1.train.polynomial_decay
        with mock.patch.object(tf1.train, "polynomial_decay", wraps=decay) as decay:
            module.init_lars_optimizer(tf1.cast(step, tf.float32) / per_epoch)
        (learning_rate, *_), _ = optimizers.LARSOptimizer.call_args
        number = tf1.placeholder(tf.int64, ())
        assign = step.assign(number)
    session = tf1.Session(graph=graph)

    def rate(at):
        session.run(assign, {number: at})
        return session.run(learning_rate)

    _, _, decay_steps = decay.call_args.args[:3]
    return Run(total + 1 - decay_steps, total, rate)


def mlperf_keras(sources, source, flags):
    """Google's `lars_util.py` for TensorFlow 2, in which epochs have whole steps."""
    import tensorflow as tf

    module, _ = with_flags(source, sources, "tf2_common.utils.mlp_log")
    logged = {"optimizer": "LARS", "lars_epsilon": 0.0, "weight_decay": 0.0}
    module.FLAGS = SimpleNamespace(**logged, momentum=0.9)
    arguments = dict(flags)
    per_epoch, epochs = IMAGENET // arguments["batch_size"], arguments.pop("epochs")
    schedule = module.PolynomialDecayWithWarmup(
        steps_per_epoch=per_epoch, train_steps=epochs * per_epoch, **arguments
    )
    warmup = arguments["warmup_epochs"] * per_epoch

    def rate(step):
        # TensorFlow has moved this function.
        moved = ("convert_to_tensor_v2", tf.convert_to_tensor)
        with mock.patch.object(module.ops, *moved, create=True):
            return schedule(tf.constant(step, tf.float32))

    return Run(warmup, epochs * per_epoch, rate)


def mlperf_jax(sources, source):
    """The function of `train.py`, whose `main` stretches an epoch to 19.75 steps."""
    names = {"jnp": jnp, "mllogger": mock.MagicMock()}
    name = "polynomial_learning_rate_fn"
    make = function(source, sources, name, **names)
    per_epoch, epochs, loops = IMAGENET / 65536, 92, 4
    per_epoch *= math.ceil(per_epoch * loops) / (per_epoch * loops)
    schedule = make(65536, per_epoch, epochs)
    warmup = math.ceil(33 * per_epoch)
    return Run(warmup, round(epochs * per_epoch), lambda t: schedule(jnp.asarray(t)))


SQRT = {"learning_rate": 0.075, "learning_rate_scaling": "sqrt", "weight_decay": 1e-4}
# recipe: the function of its source, the file of the schedule, and the flags
RUNS = {
    "barlow-twins-resnet50-lars-2048": (barlow_twins, BARLOW_TWINS),
    "vicreg-resnet50-lars-512": (
        vicreg, VICREG, "--epochs 100 --batch-size 512 --base-lr 0.3", 8),
    "vicreg-resnet50-lars-2048": (
        vicreg, VICREG, "--epochs 1000 --batch-size 2048 --base-lr 0.2", 32),
    **{
        f"byol-resnet50-lars-4096-{epochs}-epochs": (byol, BYOL_SCHEDULE, epochs)
        for epochs in (40, 100, 300, 1000)
    },
    "simclr-resnet50-lars-4096-linear": (
        simclr, SIMCLR_SCHEDULE, {"train_batch_size": 4096}),
    "simclr-resnet50-lars-4096-sqrt": (
        simclr, SIMCLR_SCHEDULE, {"train_batch_size": 4096} | SQRT),
    "moco-v3-resnet50-lars-4096-100-epochs": (moco_v3, MOCO_V3_SCHEDULE, ""),
    "moco-v3-resnet50-lars-4096-300-epochs": (
        moco_v3, MOCO_V3_SCHEDULE, "--lr=.3 --epochs=300"),
    "moco-v3-resnet50-lars-4096-1000-epochs": (
        moco_v3, MOCO_V3_SCHEDULE, "--lr=.3 --wd=1.5e-6 --epochs=1000"),
    "swav-resnet50-lars-4096": (swav, SWAV),
    "mae-vit_base_patch16-lars-16384": (
        mae, MAE_SCHEDULE, "--batch_size 512 --epochs 90 --blr 0.1"),
    "mlperf-v0.7-resnet50-lars-2496": (
        mlperf_keras, google("v0.7", "resnet-cloud-TF2.0-gpu-v100-8"),
        {"batch_size": 2496, "initial_learning_rate": 9.5, "warmup_epochs": 5,
         "epochs": 40}),
    "mlperf-v0.7-resnet50-lars-4096": (
        mlperf_keras, google("v0.7", "resnet-cloud-TF2.0-tpu-v3-32"),
        {"batch_size": 4096, "initial_learning_rate": 13.0, "warmup_epochs": 2,
         "epochs": 41}),
    "mlperf-v0.7-resnet50-lars-65536-jax": (
        mlperf_jax, google("v0.7", "resnet-research-JAX-tpu-v3-8192", "train.py")),
    **{
        f"mlperf-{version}-resnet50-lars-{name}": (
            mlperf, google(version, folder), f"{scripts}/run_and_time.sh")
        for version, name, folder, scripts in (
            ("v0.6", "4096", "tpu-v3-32-resnet/resnet", "tpu-v3-32"),
            ("v0.6", "16384", "tpu-v3-128-resnet/resnet", "tpu-v3-128"),
            ("v0.6", "32768", "tpu-v3-2048-resnet/resnet", "tpu-v3-2048"),
            ("v0.6", "32768-33", "tpu-v3-256-resnet/resnet", "tpu-v3-256"),
            ("v0.7", "2048", "resnet-research-TF-tpu-v4-16", "tpu-v4-16-TF"),
            ("v0.7", "8192", "resnet-research-TF-tpu-v4-128", "tpu-v4-128-TF"),
            ("v0.7", "65536", "resnet-research-TF-tpu-v3-8192", "tpu-v3-8192-TF"),
            ("v1.0", "8192", "resnet-preview-TF-tpu-v4-128",
             "implementations/tpu-v4-128-TF"),
            ("v1.0", "32768", "resnet-preview-TF-tpu-v4-4096",
             "implementations/tpu-v4-4096-TF"),
            ("v1.0", "55296", "resnet-preview-TF-tpu-v4-6912",
             "implementations/tpu-v4-6912-TF"),
        )
    },
}  # fmt: skip


def record(sources):
    """The knots of every run and the source's rates there, by the recipe's name."""
    found = {}
    for name, (make, source, *flags) in RUNS.items():
        run = make(sources, source, *flags)
        steps = run.knots()
        found[name] = {
            "source": source._asdict(),
            "flags": flags,
            "warmup": run.warmup,
            "total": run.total,
            "steps": steps,
            "rates": [float(run.rate(step)) for step in steps],
        }
        print(name)
    return found
