"""Runs an optimizer of another framework on the gradients of `inputs.py`."""

import torch
from inputs import STEPS

# What Keras would call each leaf: TensorFlow's rules exclude leaves by their names.
KERAS_NAMES = {"norm/scale": "batch_normalization/gamma"}


def run_torch(build, inputs, groups=list, set_rate=None):
    """Every leaf after every step of the torch optimizer that `build` returns.

    If a source has a schedule of its own, `set_rate(optimizer, step)` sets the learning
    rate in place of the given ones. The rates of the first group are recorded too.
    """
    params, grads, rates = inputs
    tensors = {leaf: torch.tensor(value) for leaf, value in params.items()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    optimizer = build(groups(tensors.values()))
    history = {leaf: [] for leaf in params}
    history |= {"learning_rates": []} if set_rate else {}
    for step, rate in enumerate(rates):
        if set_rate:
            set_rate(optimizer, step)
            history["learning_rates"].append(optimizer.param_groups[0]["lr"])
        else:
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
        for leaf, tensor in tensors.items():
            # A new tensor at each step: some implementations change it in place.
            tensor.grad = torch.tensor(grads[leaf][step])
        optimizer.step()
        for leaf, tensor in tensors.items():
            history[leaf].append(tensor.detach().numpy().copy())
    return history


def two_groups(tensors):
    """The leaves of several axes, and those of one axis."""
    return [
        {"params": [t for t in tensors if t.ndim > 1]},
        {"params": [t for t in tensors if t.ndim == 1]},
    ]


def run_tensorflow(optimizer, set_rate, inputs):
    """Every leaf after every step of a TensorFlow optimizer."""
    import tensorflow as tf

    params, grads, _ = inputs
    variables = {
        leaf: tf.Variable(value, name=KERAS_NAMES.get(leaf, leaf))
        for leaf, value in params.items()
    }
    history = {leaf: [] for leaf in params}
    for step in range(STEPS):
        set_rate(step)
        optimizer.apply_gradients(
            [(tf.constant(grads[leaf][step]), v) for leaf, v in variables.items()]
        )
        for leaf, variable in variables.items():
            history[leaf].append(variable.numpy())
    return history
