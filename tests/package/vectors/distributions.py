"""The implementations that are installed as Python distributions."""

import importlib
import importlib.metadata
import sys
import types
from functools import partial
from unittest import mock

import jax
import numpy as np
import torch
from inputs import SGD
from run_optimizers import run_torch, two_groups

# With this factor some trust ratios are above the rate and some below.
LARC = {"rate_scale": 0.02}

PYTORCH_OPTIMIZER = {
    "decay": SGD,
    "nesterov": SGD | {"nesterov": True},
    "no_momentum": SGD | {"momentum": 0.0},
    "no_decay": {"momentum": 0.9},
    "dampening": SGD | {"dampening": 0.3},
}
TIMM = PYTORCH_OPTIMIZER | {
    "always_adapt": {"momentum": 0.9, "always_adapt": True},
    "two_groups": SGD,  # the leaves of one axis in a group without decay
    "trust_clip": SGD | LARC | {"trust_coeff": 0.02, "trust_clip": True},
}
SOLO_LEARN = {
    "decay": SGD,
    "exclude_nesterov": SGD | {"nesterov": True, "exclude_bias_n_norm": True},
    "clip": SGD | LARC | {"eta": 0.02, "clip": True},
}
FLAX = {
    "decay": {"weight_decay": 0.01, "beta": 0.9},
    "nesterov": {"weight_decay": 0.01, "beta": 0.9, "nesterov": True, "eps": 1e-3},
    "no_decay": {"beta": 0.9},
}


# distribution: its module that has the rule
MODULES = {
    "timm": "timm.optim.lars",
    "pytorch_optimizer": "pytorch_optimizer.optimizer.lars",
    "solo-learn": "solo.utils.lars",
    "flax": "flax.optim.lars",
}


def load(distribution, placeholders=()):
    """Import a distribution's rule without running its packages' `__init__`."""
    files = importlib.metadata.distribution(distribution)
    parts = MODULES[distribution].split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(files.locate_file("/".join(parts[:depth])))]
        sys.modules[package.__name__] = package
    for name in placeholders:
        sys.modules[name] = mock.MagicMock()
    return importlib.import_module(MODULES[distribution])


def run_with_options(build, options, inputs, groups=list):
    """As `run_torch`, with the options of one configuration as arguments of `build`.

    The option `rate_scale` multiplies the learning rates instead.
    """
    params, grads, rates = inputs
    rates = rates * options.get("rate_scale", 1.0)
    arguments = {key: x for key, x in options.items() if key != "rate_scale"}
    return run_torch(partial(build, **arguments), (params, grads, rates), groups)


def record_timm(options, inputs, name):
    """timm.optim.lars.Lars: PyTorch's SGD after multiplication by the ratio."""
    lars = load("timm").Lars

    def without_decay(tensors):
        weights, others = two_groups(tensors)
        return [weights, others | {"weight_decay": 0.0}]

    groups = without_decay if name == "two_groups" else list
    return run_with_options(lars, options, inputs, groups)


def record_pytorch_optimizer(options, inputs, _):
    """pytorch_optimizer.optimizer.lars.LARS: leaves of one axis take plain SGD."""
    lars = load("pytorch_optimizer").LARS
    return run_with_options(lars, options, inputs)


def record_solo_learn(options, inputs, _):
    """solo.utils.lars.LARSWrapper, around torch.optim.SGD itself."""
    wrapper = load("solo-learn").LARSWrapper

    def build(leaves, weight_decay, momentum, nesterov=False, **options):
        sgd = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        return wrapper(torch.optim.SGD(leaves, lr=1.0, **sgd), **options)

    return run_with_options(build, options, inputs)


def record_flax(options, inputs, _):
    """flax.optim.LARS, which left Flax after 0.5.3: the rate is inside the momentum.

    The part of flax.optim that maps the rule over a tree does not run with the JAX of
    make_vectors.py, so the rule is called for each leaf. Placeholders replace the
    modules that the rule does not use.
    """
    params, grads, rates = inputs
    unused = ("jax_utils", "core", "serialization", "traverse_util")
    with mock.patch.object(jax.tree_util, "register_keypaths", create=True):
        module = load("flax", [f"flax.{part}" for part in unused])
    definition = module.LARS(**options)
    history = {leaf: [] for leaf in params}
    for leaf, param in params.items():
        param = jax.numpy.asarray(param)
        state = definition.init_param_state(param)
        for step, rate in enumerate(rates):
            hyper = definition.hyper_params.replace(learning_rate=float(rate))
            # The rule would change a NumPy array in place.
            grad = jax.numpy.asarray(grads[leaf][step])
            param, state = definition.apply_param_gradient(
                step, hyper, param, state, grad
            )
            history[leaf].append(np.asarray(param))
    return history


# distribution: (the function that records it, other distributions, configurations)
RECORDERS = {
    "timm": (record_timm, ["torch"], TIMM),
    "pytorch_optimizer": (record_pytorch_optimizer, ["torch"], PYTORCH_OPTIMIZER),
    "solo-learn": (record_solo_learn, ["torch"], SOLO_LEARN),
    "flax": (record_flax, ["jax"], FLAX),
}
