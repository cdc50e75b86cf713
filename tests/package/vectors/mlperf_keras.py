"""Google's LARS for TensorFlow 2, as in the round v0.7 of MLPerf Training.

TensorFlow has moved some functions that the two files of this optimizer import. Here
they come from their present modules. The gradients are those of one process, so they
are not summed over processes.
"""

from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from unittest import mock

from mlperf import google
from run_optimizers import run_tensorflow

FOLDER = "resnet-cloud-TF2.0-gpu-v100-8"
LARS = google("v0.7", FOLDER, "lars_optimizer.py")
BASE = google("v0.7", FOLDER, "tf2_common/training/optimizer_v2modified.py")


def record(sources, options, inputs):
    """The optimizer asks its schedule for the rate of each step."""
    import tensorflow as tf
    from tensorflow.python.distribute import distribute_lib
    from tensorflow.python.framework import ops
    from tensorflow.python.keras.optimizer_v2 import optimizer_v2, utils
    from tensorflow.python.keras.optimizer_v2.learning_rate_schedule import (
        LearningRateSchedule,
    )
    from tensorflow.python.ops import gen_training_ops

    class Given(LearningRateSchedule):
        def __call__(self, step):
            return tf.gather(tf.constant(inputs[2]), tf.cast(step, tf.int64))

        def get_config(self):
            return {}

    moved = (
        (optimizer_v2, "_filter_grads", utils.filter_empty_gradients),
        (ops, "IndexedSlices", tf.IndexedSlices),
        (ops, "Tensor", tf.Tensor),
    )
    context = "tensorflow.python.distribute.distribution_strategy_context"
    base = BASE.load(sources, **{context: distribute_lib})
    modules = {
        "tf2_common.training": SimpleNamespace(optimizer_v2modified=base),
        "tensorflow.python.training": SimpleNamespace(training_ops=gen_training_ops),
    }
    with ExitStack() as stack:
        for names in moved:
            stack.enter_context(mock.patch.object(*names, create=True))
        optimizer = LARS.load(sources, **modules).LARSOptimizer(Given(), **options)
        apply = partial(
            optimizer.apply_gradients, experimental_aggregate_gradients=False
        )
        given = SimpleNamespace(apply_gradients=apply)
        return run_tensorflow(given, lambda step: None, inputs)


RECORDERS = {
    "mlperf_keras": (LARS, record, ["tensorflow"], {
        "skip": {"weight_decay": 0.01, "momentum": 0.9,
                 "skip_list": ["batch_normalization", "bias"]},
    }),
}  # fmt: skip
