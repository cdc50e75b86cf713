"""The implementations of self-supervised methods, each with its own schedule.

The schedule runs with one step per epoch. Its 10 epochs of warm-up and 15 epochs of
cosine decay are then the 25 steps.
"""

import ast
import math
import os
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import optax
import torch
from inputs import STEPS
from run_optimizers import run_tensorflow, run_torch, two_groups
from source import Source

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # SimCLR's optimizer is one of Keras 2

LOADER = range(1)  # a data loader of one step per epoch
BATCH = 25_600  # 100 times the batch size of 256 to which the sources' rates belong

BYOL = Source(
    "google-deepmind/deepmind-research",
    "f5de0ede8430809180254ee957abf36ed62579ef",
    "byol/utils/optimizers.py",
)
BYOL_SCHEDULE = BYOL._replace(path="byol/utils/schedules.py")
BARLOW_TWINS = Source(
    "facebookresearch/barlowtwins",
    "8e8d284ca0bc02f88b92328e53f9b901e86b4a3c",
    "main.py",
)
VICREG = Source(
    "facebookresearch/vicreg",
    "4e12602fd495af83efd1631fbe82523e6db092e0",
    "main_vicreg.py",
)
MOCO_V3 = Source(
    "facebookresearch/moco-v3",
    "c349e6e24f40d3fedb22d973f92defa4cedf37a7",
    "moco/optimizer.py",
)
MOCO_V3_SCHEDULE = MOCO_V3._replace(path="main_moco.py")
MAE = Source(
    "facebookresearch/mae",
    "efb2a8062c206524e35e47d04501ed4f544c0ae8",
    "util/lars.py",
)
MAE_SCHEDULE = MAE._replace(path="util/lr_sched.py")
APEX = Source(
    "NVIDIA/apex",
    "4a1aa97e31ca87514e17c3cd3bbc03f4204579d0",
    "apex/parallel/LARC.py",
)
SWAV = Source(
    "facebookresearch/swav",
    "06b1b7cbaf6ba2a792300d79c7299db98b93b7f9",
    "main_swav.py",
)
SIMCLR = Source(
    "google-research/simclr",
    "383d4143fd8cf7879ae10f1046a9baeb753ff438",
    "tf2/lars_optimizer.py",
)
SIMCLR_SCHEDULE = SIMCLR._replace(path="tf2/model.py")


def record_byol(sources, options, inputs):
    """BYOL's chain, on Optax 0.2.8, with `jax.tree_map` defined as `jax.tree.map`."""
    schedules = BYOL_SCHEDULE.load(sources)
    module = BYOL.load(sources)
    params, grads, _ = inputs
    names = {leaf: tuple(leaf.split("/")) for leaf in params}
    names = {  # Haiku's name of each leaf
        leaf: (layer, {"kernel": "w", "bias": "b"}.get(name, name))
        for leaf, (layer, name) in names.items()
    }

    def as_haiku(leaves):
        tree = {}
        for leaf, (layer, name) in names.items():
            tree.setdefault(layer, {})[name] = jax.numpy.asarray(leaves[leaf])
        return tree

    schedule = {key: options[key] for key in ("batch_size", "base_learning_rate")}
    schedule |= {"total_steps": STEPS, "warmup_steps": 10}
    settings = {key: options[key] for key in ("weight_decay", "momentum", "eta")}
    tree, state = as_haiku(params), None
    history = {leaf: [] for leaf in params} | {"learning_rates": []}
    with mock.patch.object(jax, "tree_map", jax.tree.map, create=True):
        for step in range(STEPS):
            rate = schedules.learning_schedule(jax.numpy.asarray(step), **schedule)
            history["learning_rates"].append(float(rate))
            tx = module.lars(
                float(rate),
                weight_decay_filter=module.exclude_bias_and_norm,
                lars_adaptation_filter=module.exclude_bias_and_norm,
                **settings,
            )
            state = tx.init(tree) if state is None else state
            gradients = as_haiku({leaf: grads[leaf][step] for leaf in grads})
            updates, state = tx.update(gradients, state, tree)
            tree = optax.apply_updates(tree, updates)
            for leaf, (layer, name) in names.items():
                history[leaf].append(np.asarray(tree[layer][name]))
    return history


def record_barlow_twins(sources, options, inputs):
    """Weights are one group, and leaves of one axis another with its own rate."""
    module = BARLOW_TWINS.load(sources, "PIL", "torchvision", "torchvision.transforms")
    arguments = SimpleNamespace(epochs=STEPS, **options)

    def build(leaves):
        filters = {"weight_decay_filter": True, "lars_adaptation_filter": True}
        decay = arguments.weight_decay
        return module.LARS(leaves, lr=0, weight_decay=decay, **filters)

    def set_rate(optimizer, step):
        module.adjust_learning_rate(arguments, optimizer, LOADER, step)

    return run_torch(build, inputs, two_groups, set_rate)


def record_vicreg(sources, options, inputs):
    """The optimizer of Barlow Twins, with all leaves in one group."""
    unused = ("torchvision", "torchvision.datasets", "augmentations", "distributed")
    module = VICREG.load(sources, *unused, "resnet")
    arguments = SimpleNamespace(epochs=STEPS, **options)

    def build(leaves):
        names = ("weight_decay_filter", "lars_adaptation_filter")
        filters = dict.fromkeys(names, module.exclude_bias_and_norm)
        return module.LARS(leaves, lr=0, weight_decay=arguments.wd, **filters)

    def set_rate(optimizer, step):
        module.adjust_learning_rate(arguments, optimizer, LOADER, step)

    return run_torch(build, inputs, set_rate=set_rate)


def record_moco_v3(sources, options, inputs):
    """MoCo v3's own file, with the schedule of its `main_moco.py`."""
    adjust = MOCO_V3_SCHEDULE.function(sources, "adjust_learning_rate")
    return run_by_epoch(MOCO_V3.load(sources).LARS, adjust, inputs, **options)


def record_mae(sources, options, inputs):
    """MAE's copy of MoCo v3's file, with the schedule of MAE's linear probe."""
    adjust = MAE_SCHEDULE.load(sources).adjust_learning_rate
    return run_by_epoch(MAE.load(sources).LARS, adjust, inputs, **options)


def run_by_epoch(lars, adjust, inputs, weight_decay, **rates):
    """Runs `lars` with a schedule that takes the epoch as a float."""
    arguments = SimpleNamespace(warmup_epochs=10, epochs=STEPS, **rates)
    return run_torch(
        lambda leaves: lars(leaves, weight_decay=weight_decay),
        inputs,
        set_rate=lambda optimizer, step: adjust(optimizer, float(step), arguments),
    )


def swav_schedule(sources, arguments, batches):
    """The statements of `main_swav.py` that assign its schedule, executed alone."""
    tree = ast.parse(SWAV.read(sources))
    (main,) = [node for node in tree.body if getattr(node, "name", None) == "main"]
    names = {"warmup_lr_schedule", "iters", "cosine_lr_schedule", "lr_schedule"}
    tree.body = [
        node
        for node in main.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names
    ]
    names = {"np": np, "math": math, "args": arguments, "train_loader": batches}
    exec(compile(tree, SWAV.path, "exec"), names)
    return names["lr_schedule"]


def swav_rates(sources, options):
    keys = ("start_warmup", "base_lr", "final_lr")
    arguments = {key: options[key] for key in keys}
    arguments = SimpleNamespace(warmup_epochs=10, epochs=STEPS, **arguments)
    return swav_schedule(sources, arguments, LOADER)


def record_apex(sources, options, inputs):
    """apex's LARC around torch.optim.SGD, as SwAV uses it or with its clip."""
    larc = APEX.load(sources).LARC
    sgd = {"momentum": 0.9, "weight_decay": options["wd"]}
    arguments = {k: options[k] for k in ("trust_coefficient", "clip") if k in options}
    rates = swav_rates(sources, options)

    def build(leaves):
        return larc(torch.optim.SGD(leaves, lr=1.0, **sgd), **arguments)

    def set_rate(optimizer, step):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])

    return run_torch(build, inputs, set_rate=set_rate)


def record_simclr(sources, options, inputs):
    """The version for TensorFlow 2. The older one keeps its momentum in float32."""
    import tensorflow as tf

    model = SIMCLR_SCHEDULE.load(sources, "data_util", "lars_optimizer", "resnet")
    flags = {key: options[key] for key in ("learning_rate_scaling", "train_batch_size")}
    flags |= {"warmup_epochs": 10, "train_epochs": STEPS, "train_steps": 0}
    model.FLAGS = SimpleNamespace(**flags)
    num_examples = options["train_batch_size"]  # one step per epoch
    schedule = model.WarmUpAndCosineDecay(options["learning_rate"], num_examples)
    keys = {"learning_rate", *flags}
    arguments = {key: value for key, value in options.items() if key not in keys}
    optimizer = SIMCLR.load(sources).LARSOptimizer(0.0, momentum=0.9, **arguments)
    rates = []

    def set_rate(step):
        # Keras 2 computes its cosine in float32, also from a float64 step.
        rates.append(float(schedule(tf.constant(step, tf.float32))))
        optimizer.learning_rate = tf.Variable(rates[-1], dtype=tf.float64)

    return run_tensorflow(optimizer, set_rate, inputs) | {"learning_rates": rates}


SIMCLR_LINEAR = {
    "learning_rate": 0.3,
    "learning_rate_scaling": "linear",
    "train_batch_size": BATCH,
    "weight_decay": 0.01,
    "exclude_from_weight_decay": ["batch_normalization", "bias", "head_supervised"],
}
SIMCLR_SQRT = SIMCLR_LINEAR | {"learning_rate": 0.075, "learning_rate_scaling": "sqrt"}
POPULAR = {"classic_momentum": False}
NESTEROV = {"use_nesterov": True}
SWAV_RATES = {"base_lr": 4.8, "start_warmup": 0.3, "final_lr": 0.0048, "wd": 0.01}

# file: (source, the function that records it, distributions, configurations)
RECORDERS = {
    "byol": (BYOL, record_byol, ["jax", "optax"], {
        "decay": {"base_learning_rate": 0.2, "batch_size": BATCH, "weight_decay": 0.01,
                  "momentum": 0.9, "eta": 1e-3},
    }),
    "barlow_twins": (BARLOW_TWINS, record_barlow_twins, ["torch"], {
        "decay": {"learning_rate_weights": 0.2, "learning_rate_biases": 0.0048,
                  "batch_size": BATCH, "weight_decay": 0.01},
    }),
    "vicreg": (VICREG, record_vicreg, ["torch"], {
        "decay": {"base_lr": 0.2, "batch_size": BATCH, "wd": 0.01},
    }),
    "moco_v3": (MOCO_V3, record_moco_v3, ["torch"], {
        "decay": {"lr": 30.0, "weight_decay": 0.01},
    }),
    "mae": (MAE, record_mae, ["torch"], {
        "no_decay": {"lr": 10.0, "min_lr": 0.0, "weight_decay": 0.0},
    }),
    "apex": (APEX, record_apex, ["torch"], {
        "swav": SWAV_RATES | {"trust_coefficient": 0.001, "clip": False},
        "clip": SWAV_RATES | {"base_lr": 0.4, "start_warmup": 0.01, "final_lr": 0.0},
    }),
    "simclr": (SIMCLR, record_simclr, ["tensorflow", "tf_keras"], {
        "classic": SIMCLR_LINEAR,
        "classic_nesterov": SIMCLR_LINEAR | NESTEROV,
        "popular": SIMCLR_SQRT | POPULAR,
        "popular_nesterov": SIMCLR_SQRT | POPULAR | NESTEROV,
    }),
}  # fmt: skip

# file: the source of its schedule
SCHEDULES = {
    "byol": BYOL_SCHEDULE,
    "barlow_twins": BARLOW_TWINS,
    "vicreg": VICREG,
    "moco_v3": MOCO_V3_SCHEDULE,
    "mae": MAE_SCHEDULE,
    "apex": SWAV,
    "simclr": SIMCLR_SCHEDULE,
}
