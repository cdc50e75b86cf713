"""The learning rates that the sources' own schedules have in the published runs.

The function of each source takes the folder with all sources, the file of the schedule
and the flags of a run. It returns a `Run`. A value that the flags leave out is the
default in the source's own file. The batches of an epoch are those of PyTorch's
DataLoader with the source's sampler, number of processes and treatment of the last
batch.
"""

import shlex
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax.numpy as jnp
import self_supervised
from self_supervised import (
    BARLOW_TWINS,
    BYOL_SCHEDULE,
    MAE_SCHEDULE,
    MOCO_V3_SCHEDULE,
    SIMCLR_SCHEDULE,
    SWAV,
    VICREG,
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
        """Steps at both ends of the warm-up and of the decay, and in its middle."""
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


def of_steps(adjust, arguments, batches):
    """A run whose schedule takes the step, with a warm-up of 10 epochs."""
    n = len(batches)

    def at(optimizer, step):
        adjust(arguments, optimizer, batches, step)

    return Run(10 * n, arguments.epochs * n, rate_of(at))


def barlow_twins(sources, source):
    module = source.load(sources, "PIL", "torchvision", "torchvision.transforms")
    arguments = module.parser.parse_args(["data"])
    batches = loader(arguments.batch_size, 16, False)
    return of_steps(module.adjust_learning_rate, arguments, batches)


def vicreg(sources, source, flags, processes):
    unused = ("torchvision", "torchvision.datasets", "augmentations", "distributed")
    module = source.load(sources, *unused, "resnet")
    arguments = module.get_arguments().parse_args(["--data-dir", "", *flags.split()])
    batches = loader(arguments.batch_size, processes, False)
    return of_steps(module.adjust_learning_rate, arguments, batches)


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
    rates = self_supervised.swav_schedule(sources, arguments, batches)
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
}  # fmt: skip


def record(sources, runs):
    """The recorded steps of each run and the source's rates there, by recipe."""
    found = {}
    for name, (make, source, *flags) in runs.items():
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
