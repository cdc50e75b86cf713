"""The parameters, gradients and learning rates that every implementation gets.

The gradients are drawn at random and do not depend on the parameters. An error in one
step thus does not change the gradients of later steps.
"""

import numpy as np

STEPS = 25
DROP = 15  # the step at which the learning rate falls to a tenth
IDLE_STEPS = (7, 8, 16)  # steps at which the gradient of idle/kernel is zero

# The arguments of SGD, by the names that most implementations have.
SGD = {"weight_decay": 0.01, "momentum": 0.9}

# name: (shape, scale of the initial values, scale of the gradients)
LEAVES = {
    "conv/kernel": ((2, 2, 2, 2), 0.1, 0.3),
    "dense/kernel": ((3, 3), 2.0, 0.02),  # decay is half of the denominator
    "dense/bias": ((3,), 0.05, 0.1),
    "norm/scale": ((2,), 0.0, 1e-3),  # zero at first, one axis
    "head/kernel": ((2, 2), 0.0, 1e-3),  # zero at first, two axes
    "idle/kernel": ((2, 2), 0.5, 0.05),  # gradient zero at IDLE_STEPS
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
