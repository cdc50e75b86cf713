"""The other implementations that are files of a repository or of an old TensorFlow."""

import importlib
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from inputs import SGD
from run_optimizers import run_tensorflow, run_torch
from source import Source

TF_CONTRIB = Source(
    "tensorflow/tensorflow",
    "1.15.5",
    "tensorflow_core/contrib/opt/python/training/lars_optimizer.py",
)
TF_CONTRIB_1_14 = Source(
    "tensorflow/tensorflow",
    "1.14.0",
    "tensorflow/contrib/opt/python/training/lars_optimizer.py",
)
TORCHLARS = Source(
    "kakaobrain/torchlars",
    "3b3d7e9c7bd35a31b2c2fa6f213beb0bf6881892",
    "torchlars/lars.py",
)
NNABLA = Source(
    "sony/nnabla",
    "2814df0dc2b01a79fdb99fd2c238a526b3e9ef4d",
    "python/test/solver/test_lars.py",
)


def record_tf_contrib(sources, options, inputs, source=TF_CONTRIB):
    """tf.contrib's optimizer on the kernels of the installed TensorFlow."""
    import tensorflow as tf

    kernels = importlib.import_module("tensorflow.python.ops.gen_training_ops")
    moved = {"tensorflow.python.training.training_ops": kernels}
    rate = tf.Variable(0.0, dtype=tf.float64)
    optimizer = source.load(sources, **moved).LARSOptimizer(rate, **options)
    rates = inputs[2]
    return run_tensorflow(optimizer, lambda step: rate.assign(rates[step]), inputs)


record_tf_contrib_1_14 = partial(record_tf_contrib, source=TF_CONTRIB_1_14)


# PyTorch no longer dispatches on `tensor.type()`. Without CUDA, the function of the
# CUDA file needs an empty definition.
FOR_TORCHLARS = """
#include "torch/extension.h"
#undef AT_DISPATCH_FLOATING_TYPES_AND_HALF
#define AT_DISPATCH_FLOATING_TYPES_AND_HALF(TYPE, NAME, ...) \\
  AT_DISPATCH_SWITCH((TYPE).scalarType(), NAME, \\
      AT_DISPATCH_CASE_FLOATING_TYPES_AND_HALF(__VA_ARGS__))
inline void ComputeAdaptiveLrOnDevice(
    torch::Tensor, torch::Tensor, double, double, double, torch::Tensor) {}
"""


def record_torchlars(sources, options, inputs):
    """torchlars around torch.optim.SGD. Its C++ file is compiled for the CPU."""
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory() as folder:
        header, code = Path(folder, "header.h"), Path(folder, "adaptive_lr.cc")
        header.write_text(FOR_TORCHLARS)
        code.write_text(
            TORCHLARS._replace(path="torchlars/adaptive_lr.cc").read(sources)
        )
        flags = ["-include", str(header)]
        name = "_adaptive_lr"
        extension = cpp_extension.load(name, str(code), flags, build_directory=folder)
        modules = {"torchlars._adaptive_lr": extension}
        lars = TORCHLARS.load(sources, "torchlars", **modules).LARS

    def build(leaves):
        return lars(torch.optim.SGD(leaves, lr=1.0, **options))

    return run_torch(build, inputs)


def record_nnabla(sources, options, inputs):
    """The NumPy reference in nnabla's test. Its C++ solver has only float32."""
    unused = ("nnabla", "nnabla.solvers", "nnabla.testing")
    base = NNABLA._replace(path="python/test/solver/solver_test_utils.py")
    base = base.load(sources, *unused)
    unused = ("pytest", *unused, "nbla_test_utils")
    module = NNABLA.load(sources, *unused, solver_test_utils=base)
    params, grads, rates = inputs
    arguments = ("momentum", "coefficient", "eps")
    solver = module.RefLars(rates[0], *(options[key] for key in arguments))
    solver.set_parameters({k: SimpleNamespace(d=x) for k, x in params.items()})
    history = {leaf: [] for leaf in params}
    for step, rate in enumerate(rates):
        solver.lr = rate
        gradients = {leaf: grads[leaf][step] for leaf in grads}
        solver.weight_decay(gradients, options["weight_decay"])
        solver.update(gradients)
        for leaf, value in solver.params.items():
            history[leaf].append(value.copy())
    return history


# file: (source, the function that records it, distributions, configurations)
RECORDERS = {
    "tf_contrib": (TF_CONTRIB, record_tf_contrib, ["tensorflow"], {
        "decay": SGD,
        "skip": SGD | {"skip_list": ["batch_normalization", "bias"]},
        "nesterov": SGD | {"use_nesterov": True, "epsilon": 1e-3},
    }),
    "tf_contrib_1_14": (TF_CONTRIB_1_14, record_tf_contrib_1_14, ["tensorflow"], {
        "decay": SGD,
    }),
    "torchlars": (TORCHLARS, record_torchlars, ["torch"], {
        "decay": SGD,
    }),
    "nnabla": (NNABLA, record_nnabla, ["numpy"], {
        "decay": SGD | {"coefficient": 1e-3, "eps": 1e-8},
    }),
}  # fmt: skip
