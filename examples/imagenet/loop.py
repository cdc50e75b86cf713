"""The loop: epochs of updates, an exact evaluation after each, a log of both.

`Trainer` is one configuration compiled once; `fit` runs it for a seed. A loss that is
not finite ends the run: the result says so and is measured on the last parameters.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from .config import Config, check_batch
from .data import Dataset, Split, batch_index, padded_batches
from .engine import assert_replicated, parallelize, replicate
from .models import make_model
from .optimizer import make_optimizer, make_schedule
from .train import Batch, TrainState, eval_step, init_state, train_step

_Pending = tuple[int, dict[str, jax.Array]]  # a step and its unfetched metrics


@dataclass(frozen=True)
class Scores:
    loss: float
    accuracy: float
    count: int  # images evaluated


@dataclass(frozen=True)
class Result(Scores):
    updates: int
    diverged: bool
    seconds: float  # of training, without compilation and evaluation


class Trainer:
    """A configuration bound to data and devices; compiled at its first step."""

    def __init__(
        self, config: Config, data: Dataset, devices: Sequence[jax.Device]
    ) -> None:
        run = config.run
        check_batch(run.batch_size, len(devices), len(data.train.labels))
        self.config, self.data, self.devices = config, data, devices
        self.eval_split: Split = getattr(data, config.data.evaluate_on)
        if not len(self.eval_split.labels):
            raise ValueError("--validation-images: got 0; evaluate on the test images")
        self.steps_per_epoch = len(data.train.labels) // run.batch_size
        # Rounded up to a size every device gets an equal share of.
        self.eval_batch = -(-run.eval_batch_size // len(devices)) * len(devices)
        self.schedule = make_schedule(
            config.optimizer, steps_per_epoch=self.steps_per_epoch, epochs=run.epochs
        )
        self.updates = self.steps_per_epoch * run.epochs
        self.rates = np.asarray(jax.vmap(self.schedule)(np.arange(self.updates)))
        self.model = make_model(
            config.model.network,
            classes=data.classes,
            width=config.model.width,
            pixel_mean=float(data.train.images.mean()),
            pixel_std=float(data.train.images.std()),
        )
        self.tx = make_optimizer(config.optimizer, self.schedule)
        self.step = parallelize(
            partial(train_step, model=self.model, tx=self.tx),
            devices,
            donate_state=True,
        )
        self.eval_step = parallelize(partial(eval_step, model=self.model), devices)
        self._compiled = False

    def init(self, seed: int) -> TrainState:
        shape = self.data.train.images.shape[1:]
        # XLA takes twelve seconds to compile the default generator on a CPU.
        key = jax.random.key(seed, impl="rbg")
        state = init_state(key, self.model, self.tx, shape)
        copies: TrainState = replicate(state, self.devices)
        return copies

    def compile(self) -> None:
        """Runs one step and one evaluation on a state that is thrown away."""
        if self._compiled:
            return
        images = self.data.train.take(np.arange(self.config.run.batch_size))
        state, _ = self.step(self.init(0), Batch(*images))
        self.evaluate(state)
        self._compiled = True

    def evaluate(self, state: TrainState) -> Scores:
        """Mean loss and accuracy over every image of the split, each exactly once."""
        loss, correct, count = 0.0, 0, 0
        for images, mask in padded_batches(self.eval_split, self.eval_batch):
            sums = jax.device_get(self.eval_step(state, Batch(*images, mask)))
            loss += sums["loss"].item()
            correct += sums["correct"].item()
            count += sums["count"].item()
        if count != len(self.eval_split.labels):
            raise RuntimeError(
                f"evaluated {count} images of {len(self.eval_split.labels)}"
            )
        return Scores(loss / count, correct / count, count)


class Log:
    """JSON lines to a file, each also handed to `show`."""

    def __init__(self, file: TextIO, show: Callable[[dict[str, Any]], None]) -> None:
        self._file, self._show = file, show

    def write(self, **record: Any) -> None:
        self._show(record)
        # Strict JSON has no NaN: what is not finite becomes null.
        strict = {k: None if _lost(v) else v for k, v in record.items()}
        self._file.write(json.dumps(strict, allow_nan=False) + "\n")
        self._file.flush()


def _lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def fit(
    trainer: Trainer,
    seed: int,
    log_path: Path,
    show: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Result:
    """Trains from `seed`; logs the configuration, each step, each epoch, the result."""
    trainer.compile()
    run = replace(trainer.config.run, seed=seed)
    state, seconds, diverged = trainer.init(seed), 0.0, False
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w") as file:
        log = Log(file, show)
        log.write(kind="config", **asdict(replace(trainer.config, run=run)))
        for epoch in range(run.epochs):
            start = time.perf_counter()
            state, diverged = _train_epoch(trainer, state, seed, epoch, log)
            seconds += time.perf_counter() - start
            assert_replicated(state)
            scores = trainer.evaluate(state)
            log.write(
                kind="epoch",
                epoch=epoch + 1,
                step=int(state.step),
                split=trainer.config.data.evaluate_on,
                **asdict(scores),
                seconds=seconds,
            )
            if diverged:
                break
        result = Result(
            **asdict(scores),
            updates=int(state.step),
            diverged=diverged,
            seconds=seconds,
        )
        log.write(kind="result", **asdict(result))
    return result


def _train_epoch(
    trainer: Trainer, state: TrainState, seed: int, epoch: int, log: Log
) -> tuple[TrainState, bool]:
    """The state after the epoch, or as soon as a loss that is not finite is seen."""
    run, train = trainer.config.run, trainer.data.train
    start = time.perf_counter()
    pending: list[_Pending] = []
    first = epoch * trainer.steps_per_epoch
    last = first + trainer.steps_per_epoch - 1
    for step in range(first, last + 1):
        index = batch_index(seed, step, len(train.labels), run.batch_size)
        state, metrics = trainer.step(state, Batch(*train.take(index)))
        pending.append((step, metrics))
        if len(pending) == run.log_every or step == last:
            losses = _flush(trainer, pending, log, start)
            if not np.isfinite(losses).all():
                return state, True
            pending = []
    return state, False


def _flush(
    trainer: Trainer, pending: list[_Pending], log: Log, start: float
) -> list[float]:
    """Fetches the metrics of the pending steps at once, logs them, returns losses."""
    fetched = jax.device_get([metrics for _, metrics in pending])
    seconds = time.perf_counter() - start
    for (step, _), metrics in zip(pending, fetched, strict=True):
        log.write(
            kind="step",
            step=step,
            epoch=step / trainer.steps_per_epoch,
            learning_rate=trainer.rates[step].item(),
            loss=metrics["loss"].item(),
            accuracy=metrics["accuracy"].item(),
            epoch_seconds=seconds,
        )
    return [metrics["loss"].item() for metrics in fetched]
