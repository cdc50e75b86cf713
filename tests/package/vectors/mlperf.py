"""The learning rates of Google's schedules in three rounds of MLPerf Training.

The functions take and return the same as those of `schedules.py`.
"""

import ast
import math
import re
import types
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax.numpy as jnp
from schedules import IMAGENET, Run, with_flags
from source import Source

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
    make = source.function(sources, name, **names)
    per_epoch, epochs, loops = IMAGENET / 65536, 92, 4
    per_epoch *= math.ceil(per_epoch * loops) / (per_epoch * loops)
    schedule = make(65536, per_epoch, epochs)
    warmup = math.ceil(33 * per_epoch)
    return Run(warmup, round(epochs * per_epoch), lambda t: schedule(jnp.asarray(t)))


# recipe: the function of its source, the file of the schedule, and the flags
RUNS = {
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
