"""The trainer's whole step, as all benchmarks of it build it, and its own process."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.results import Record
from benchmarks.speed.timer import clock
from examples.imagenet.data.dataset import Batch
from examples.imagenet.models import image_pixels, make_model, published_pixel_std
from examples.imagenet.step.step import init_state, train_step

NETWORKS = ("alexnet", "alexnet_bn", "resnet50")


def draw_batch(network: str, size: int) -> Any:
    """Returns random full-size images and labels, on the device."""
    random, side = np.random.default_rng(0), image_pixels(network)
    images = random.integers(0, 256, (size, side, side, 3), np.uint8)
    return jax.device_put(Batch(images, random.integers(0, 1000, size, np.int32)))


class TrainingStep:
    """The trainer's step on one device and one batch, compiled, its state donated."""

    def __init__(
        self, network: str, dtype: str, batch: Any, tx: Any, **options: Any
    ) -> None:
        std = published_pixel_std(network) or 1.0
        pixels: Any = {"pixel_mean": 128.0, "pixel_std": std}
        model = make_model(network, classes=1000, dtype=dtype, **pixels)
        self.network, self.batch = network, batch
        self.init = partial(init_state, 0, model, tx, batch.images.shape[1:])
        start = time.perf_counter()
        self.metrics: Any = {}
        self.state: Any = jax.block_until_ready(self.init())
        self.init_seconds = time.perf_counter() - start
        step = partial(train_step, model=model, tx=tx, axis_name=None, **options)
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, batch)
        self.compiled: Any = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> float:
        """Takes one step, waits for it and returns the seconds."""
        seconds = clock(self._step)
        if not self.metrics["finite"]:
            raise SystemExit(f"{self.network}: the gradients of a step are not finite")
        return seconds

    def _step(self) -> None:
        stepped = self.compiled(self.state, self.batch)
        self.state, self.metrics = jax.block_until_ready(stepped)

    @property
    def temporary_bytes(self) -> int:
        """The memory that XLA takes for a step, beside the state and the batch."""
        return int(self.compiled.memory_analysis().temp_size_in_bytes)


def run_module(module: str, *words: str, **environment: str) -> Record:
    """Runs a benchmark in a process of its own and returns the JSON that it prints."""
    command = [sys.executable, "-m", module, *words]
    environment = os.environ | environment
    pipe = subprocess.PIPE
    done = subprocess.run(command, stdout=pipe, text=True, check=True, env=environment)
    record: Record = json.loads(done.stdout)
    return record
