"""Times the trainer's step, and runs benchmarks in processes of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import numpy as np

from benchmarks.results import Record
from benchmarks.speed.timer import clock
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import image_pixels, make_model, published_pixel_std
from examples.imagenet.step.step import init_state, train_step
from lars_optax import LayerStats

Network = Literal["alexnet", "alexnet_bn", "resnet50"]
NETWORKS: tuple[Network, ...] = get_args(Network)
Dtype = Literal["float32", "bfloat16"]
PLAIN = "optax.sgd, no log"  # the title of a step with `no_stats`


def draw_batch(network: str, size: int) -> Any:
    """Returns `size` random images of the network's full size, with random labels."""
    random, side = np.random.default_rng(0), image_pixels(network)
    images = random.integers(0, 256, (size, side, side, 3), np.uint8)
    return jax.device_put(Batch(images, random.integers(0, 1000, size, np.int32)))


def no_stats(_: Any, params: Any) -> Any:
    """Replaces the trainer's `layer_stats`: returns constants and computes no norms."""
    return jax.tree.map(lambda leaf: LayerStats(*np.ones(3, "f")), params)


def trainers_step(
    network: str,
    dtype: Dtype,
    tx: Any,
    platform: str | None = None,
    noise_scale: bool = False,
    **options: Any,
) -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Returns two functions: one makes the trainer's state, the other takes a step.

    The images have the network's full size. With `noise_scale` the step estimates the
    gradient noise scale. `options` are further arguments of the trainer's `train_step`.
    """
    side, std = image_pixels(network), published_pixel_std(network) or 1.0
    pixels: Any = {"pixel_mean": 128.0, "pixel_std": std}
    model = make_model(network, classes=1000, dtype=dtype, platform=platform, **pixels)
    init = partial(init_state, 0, model, tx, (side, side, 3), noise_scale)
    return init, partial(train_step, model=model, tx=tx, platform=platform, **options)


class TrainingStep:
    """The trainer's compiled step, which takes and times a step when it is called.

    It runs on one device, always on the same batch, and donates its state. `options`
    are further arguments of `trainers_step`.
    """

    def __init__(
        self, network: str, dtype: Dtype, batch: Any, tx: Any, **options: Any
    ) -> None:
        self.network, self.batch = network, batch
        self.init, step = trainers_step(network, dtype, tx, axis_name=None, **options)
        start = time.perf_counter()
        self.state: Any = jax.block_until_ready(self.init())
        ready = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, batch)
        self.compiled: Any = lowered.compile()
        self.init_seconds = ready - start
        self.compile_seconds = time.perf_counter() - ready
        self.metrics: Any = {}

    def __call__(self) -> float:
        """Takes one step, waits for it and returns the seconds."""
        seconds = clock(self._step)
        if not self.metrics["finite"]:
            raise SystemExit(
                f"{self.network}: a gradient of the timed step is not finite,"
                " so its times are not valid"
            )
        return seconds

    def _step(self) -> None:
        stepped = self.compiled(self.state, self.batch)
        self.state, self.metrics = jax.block_until_ready(stepped)

    @property
    def temporary_bytes(self) -> int:
        """The bytes that XLA needs during a step, besides the state and the batch."""
        return int(self.compiled.memory_analysis().temp_size_in_bytes)


def run_module(
    module: str, environment: Mapping[str, str] | None = None, **options: Any
) -> Record:
    """Runs a benchmark in a process of its own and returns the JSON that it prints.

    `options` are the module's flags. Without `environment` the process inherits the
    environment variables of this one.
    """
    command = [sys.executable, "-m", module]
    command += [f"--{key.replace('_', '-')}={x}" for key, x in options.items()]
    record: Record = json.loads(subprocess.check_output(command, env=environment))
    return record
