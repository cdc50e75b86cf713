"""Record what four published LARS implementations do, for `test_published.py`.

Run by hand; the tests only read the .npz files this writes beside itself. In a fresh
environment of Python 3.11, away from the project's own:

    pip install torch==2.13.0 numpy==2.4.6 jax==0.10.2
    pip install --no-deps timm==1.0.31 pytorch_optimizer==4.1.0
    pip install --no-deps solo-learn==1.0.2 flax==0.5.3
    python tests/package/vectors/make_vectors.py

`--no-deps` because each file below needs torch (or jax) and nothing else of what its
distribution asks for. Each is loaded without its package's `__init__`, unmodified.

Everything is float64. One set of initial parameters, gradients and learning rates
(`inputs.npz`) goes through every configuration; the gradients are given, not computed
from the parameters, so that one wrong step shows and does not feed back. Each further
file holds `<configuration>:<leaf>`, the leaf after every step, and `about`, a JSON text
with the versions and every configuration's arguments in its own words.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
import types
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import torch

HERE = Path(__file__).parent
STEPS = 25
DROP = 15  # the learning rate falls to a tenth here
IDLE_STEPS = (7, 8, 16)  # steps where the leaf idle/kernel has no gradient

# name: (shape, scale of the initial values, scale of the gradients)
LEAVES = {
    "conv/kernel": ((2, 2, 2, 2), 0.1, 0.3),
    "dense/kernel": ((3, 3), 2.0, 0.02),  # decay is half of the denominator
    "dense/bias": ((3,), 0.05, 0.1),
    "norm/scale": ((2,), 0.0, 1e-3),  # zero at first, one axis
    "head/kernel": ((2, 2), 0.0, 1e-3),  # zero at first, two axes
    "idle/kernel": ((2, 2), 0.5, 0.05),  # gradient zero now and then
}
DECAY = {"weight_decay": 0.01, "momentum": 0.9}
LARC = {"rate_scale": 0.02}  # brings the rate among the trust ratios: both branches

PYTORCH_OPTIMIZER = {
    "decay": DECAY,
    "nesterov": DECAY | {"nesterov": True},
    "no_momentum": DECAY | {"momentum": 0.0},
    "no_decay": {"momentum": 0.9},
    "dampening": DECAY | {"dampening": 0.3},
}
TIMM = PYTORCH_OPTIMIZER | {
    "always_adapt": {"momentum": 0.9, "always_adapt": True},
    "two_groups": DECAY,  # the leaves of one axis in a group without decay
    "trust_clip": DECAY | LARC | {"trust_coeff": 0.02, "trust_clip": True},
}
SOLO_LEARN = {
    "decay": DECAY,
    "exclude_nesterov": DECAY | {"nesterov": True, "exclude_bias_n_norm": True},
    "clip": DECAY | LARC | {"eta": 0.02, "clip": True},
}
FLAX = {
    "decay": {"weight_decay": 0.01, "beta": 0.9},
    "nesterov": {"weight_decay": 0.01, "beta": 0.9, "nesterov": True, "eps": 1e-3},
    "no_decay": {"beta": 0.9},
}


def make_inputs():
    """Initial parameters, gradients of every step, and the learning rates."""
    rng = np.random.default_rng(20170813)
    params, grads = {}, {}
    for leaf, (shape, size, grad_size) in LEAVES.items():
        params[leaf] = size * rng.standard_normal(shape)
        grads[leaf] = grad_size * rng.standard_normal((STEPS, *shape))
    grads["idle/kernel"][list(IDLE_STEPS)] = 0.0
    step = np.arange(STEPS)
    rates = np.minimum(20.0 * (step + 1) / 5, 20.0 * (1 - step / 60) ** 2)
    return params, grads, np.where(step < DROP, rates, 0.1 * rates)


def load(distribution, module, placeholders=()):
    """Import one module of a distribution without running its packages' `__init__`."""
    files = importlib.metadata.distribution(distribution)
    parts = module.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(files.locate_file("/".join(parts[:depth])))]
        sys.modules[package.__name__] = package
    for name in placeholders:
        sys.modules[name] = mock.MagicMock()
    return importlib.import_module(module)


def run_torch(build, options, inputs, groups=list):
    """Every leaf after every step of the torch optimizer that `build` returns.

    Of the options, `rate_scale` is a factor of the learning rates.
    """
    params, grads, rates = inputs
    rate_scale = options.get("rate_scale", 1.0)
    arguments = {key: x for key, x in options.items() if key != "rate_scale"}
    tensors = {leaf: torch.tensor(value) for leaf, value in params.items()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    optimizer = build(groups(tensors.values()), **arguments)
    history = {leaf: [] for leaf in params}
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = float(rate) * rate_scale
        for leaf, tensor in tensors.items():
            # A new tensor each time: some implementations change it in place.
            tensor.grad = torch.tensor(grads[leaf][step])
        optimizer.step()
        for leaf, tensor in tensors.items():
            history[leaf].append(tensor.detach().numpy().copy())
    return history


def record_timm(options, inputs, name):
    """timm.optim.lars.Lars: PyTorch's SGD with the ratio put before it."""
    lars = load("timm", "timm.optim.lars").Lars

    def two_groups(tensors):
        return [
            {"params": [t for t in tensors if t.ndim > 1]},
            {"params": [t for t in tensors if t.ndim == 1], "weight_decay": 0.0},
        ]

    groups = two_groups if name == "two_groups" else list
    return run_torch(lars, options, inputs, groups)


def record_pytorch_optimizer(options, inputs, _):
    """pytorch_optimizer.optimizer.lars.LARS: leaves of one axis take plain SGD."""
    lars = load("pytorch_optimizer", "pytorch_optimizer.optimizer.lars").LARS
    return run_torch(lars, options, inputs)


def record_solo_learn(options, inputs, _):
    """solo.utils.lars.LARSWrapper, around torch.optim.SGD itself."""
    wrapper = load("solo-learn", "solo.utils.lars").LARSWrapper

    def build(leaves, weight_decay, momentum, nesterov=False, **options):
        sgd = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        return wrapper(torch.optim.SGD(leaves, lr=1.0, **sgd), **options)

    return run_torch(build, options, inputs)


def record_flax(options, inputs, _):
    """flax.optim.LARS, which left Flax after 0.5.3: the rate is inside the momentum.

    The tree-walking part of flax.optim does not run on today's jax, so the rule is
    called leaf by leaf; what the rule does not use is replaced by placeholders.
    """
    params, grads, rates = inputs
    unused = ("jax_utils", "core", "serialization", "traverse_util")
    with mock.patch.object(jax.tree_util, "register_keypaths", create=True):
        module = load("flax", "flax.optim.lars", [f"flax.{part}" for part in unused])
    definition = module.LARS(**options)
    history = {leaf: [] for leaf in params}
    for leaf, param in params.items():
        param = jax.numpy.asarray(param)
        state = definition.init_param_state(param)
        for step, rate in enumerate(rates):
            hyper = definition.hyper_params.replace(learning_rate=float(rate))
            grad = jax.numpy.asarray(grads[leaf][step])  # it does += on a NumPy one
            param, state = definition.apply_param_gradient(
                step, hyper, param, state, grad
            )
            history[leaf].append(np.asarray(param))
    return history


RECORDERS = {
    "timm": (record_timm, TIMM),
    "pytorch_optimizer": (record_pytorch_optimizer, PYTORCH_OPTIMIZER),
    "solo-learn": (record_solo_learn, SOLO_LEARN),
    "flax": (record_flax, FLAX),
}


def main():
    jax.config.update("jax_enable_x64", True)
    inputs = params, grads, rates = make_inputs()
    arrays = {f"params:{leaf}": value for leaf, value in params.items()}
    arrays |= {f"grads:{leaf}": value for leaf, value in grads.items()}
    np.savez_compressed(HERE / "inputs.npz", learning_rates=rates, **arrays)
    for distribution, (record, configurations) in RECORDERS.items():
        versions = {"python": platform.python_version()}
        for name in (distribution, "jax" if distribution == "flax" else "torch"):
            versions[name] = importlib.metadata.version(name)
        arrays = {}
        for name, options in configurations.items():
            for leaf, history in record(options, inputs, name).items():
                values = np.stack(history)
                assert values.dtype == np.float64
                assert np.all(np.isfinite(values))
                arrays[f"{name}:{leaf}"] = values
        about = json.dumps({"versions": versions, "configurations": configurations})
        path = HERE / f"{distribution.replace('-', '_')}.npz"
        np.savez_compressed(path, about=np.array(about), **arrays)
        print(path.name, path.stat().st_size, versions, sorted(configurations))


if __name__ == "__main__":
    main()
