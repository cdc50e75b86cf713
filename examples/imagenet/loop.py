"""The loop: updates, an exact evaluation after each epoch, checkpoints, a log of all.

A loss or gradient that is not finite ends the run: the log says where it arose, and the
result is that of the last state. A state that is not finite is never saved. A signal
ends the run with a checkpoint.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lars_optax import LayerStats

from .checkpoint import Checkpoints
from .diagnose import first_not_finite, leaf_not_finite
from .engine import assert_replicated
from .log import Log, Record
from .provenance import versions
from .train import TrainState
from .trainer import Scores, Trainer

_IN_FLIGHT = 2  # steps behind the one just begun that need not have ended
_Pending = tuple[int, dict[str, Any]]  # a step and its unfetched metrics


@dataclass(frozen=True)
class Result(Scores):
    updates: int
    diverged: bool
    seconds: float  # of training, without compilation, evaluation and saving


class Stopped(Exception):
    """A signal ended the run, after a checkpoint."""

    def __init__(self, signum: int, updates: int) -> None:
        super().__init__(f"{signal.Signals(signum).name} after update {updates}")
        self.signum, self.updates = signum, updates


def fit(
    trainer: Trainer,
    seed: int,
    log_path: Path,
    show: Callable[[Record], None] = lambda record: None,
    checkpoints: Checkpoints | None = None,
) -> Result:
    """Trains from `seed`, or from the newest checkpoint; logs all it does.

    With `checkpoints`, SIGTERM and SIGINT save one and raise `Stopped`.
    """
    run = replace(trainer.config.run, seed=seed)
    trainer.compile()
    state, seconds, done = trainer.init(seed), 0.0, 0
    restored = checkpoints.restore(state) if checkpoints else None
    if restored:
        state, record = restored
        seconds, done = record["seconds"], int(state.step)
    with Log(log_path, show, done if restored else None) as log:
        if restored:
            now, then = versions(), record["versions"]
            log.write(kind="resume", step=done, versions=now, saved_by=then)
        else:
            config = asdict(replace(trainer.config, run=run))
            log.write(kind="config", **config, **trainer.facts())
        training = _Training(trainer, seed, state, log, seconds)
        if checkpoints is None:
            return training.run(done)
        with checkpoints, _stop_signals() as signals:
            return training.run(done, checkpoints, signals)


class _Training:
    """A run on its way: the state, what is not logged yet, the clock."""

    def __init__(
        self, trainer: Trainer, seed: int, state: TrainState, log: Log, seconds: float
    ) -> None:
        self.trainer, self.seed, self.state, self.log = trainer, seed, state, log
        self.seconds = seconds
        self.pending: list[_Pending] = []
        self.scores: Scores | None = None  # of the present state
        self._restart_clock()

    def run(
        self,
        done: int,
        checkpoints: Checkpoints | None = None,
        signals: Sequence[int] = (),
    ) -> Result:
        """The updates from number `done` on."""
        run = self.trainer.config.run
        while done < self.trainer.updates:
            self._update(done)
            done += 1
            ends_epoch = done in self.trainer.epochs
            asked = run.checkpoint_every and done % run.checkpoint_every == 0
            saves = checkpoints and (ends_epoch or asked or signals)
            if ends_epoch or saves or len(self.pending) == run.log_every:
                if not (self._flush() and self._is_finite(done)):
                    done = int(self.state.step)
                    self._evaluate(done, self.trainer.epoch(done))
                    return self._result(diverged=True)
                if ends_epoch:
                    self._evaluate(done, self.trainer.epochs[done])
                if checkpoints and saves:
                    accuracy = self.scores.accuracy if self.scores else None
                    checkpoints.save(self.state, done, self.seconds, accuracy)
                    if signals:
                        self.log.write(kind="stopped", step=done)
                        raise Stopped(signals[0], done)
                self._restart_clock()
        return self._result(diverged=False)

    def _restart_clock(self) -> None:
        self._start, self._waited = time.perf_counter(), 0.0

    def _update(self, step: int) -> None:
        start = time.perf_counter()
        batch = self.trainer.batch(self.seed, step)
        self._waited += time.perf_counter() - start
        self.state, metrics = self.trainer.step(self.state, batch)
        self.pending.append((step, metrics))
        self.scores = None
        # A step that waits for its turn on a GPU holds its images there.
        if len(self.pending) > _IN_FLIGHT:
            jax.block_until_ready(self.pending[-1 - _IN_FLIGHT][1])

    def _flush(self) -> bool:
        """Fetches and logs the pending steps; False if one of them was not finite."""
        trainer, every = self.trainer, self.trainer.config.run.layers_every
        fetched = jax.device_get([metrics for _, metrics in self.pending])
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        for (step, _), metrics in zip(self.pending, fetched, strict=True):
            rate = trainer.rates[step].item()
            self.log.write(
                kind="step",
                step=step,
                epoch=trainer.epoch(step),
                learning_rate=rate,
                loss=metrics["loss"].item(),
                accuracy=metrics["accuracy"].item(),
            )
            layers = metrics["layers"]
            if not metrics["finite"]:
                where = self._where(step, layers.grad_norm)
                self.log.write(kind="not_finite", step=step, where=where)
                return False
            if every and step % every == 0:
                table = self._table(layers, rate)
                self.log.write(kind="layers", step=step, layers=table)
        images = len(self.pending) * trainer.config.run.batch_size
        self.log.write(
            kind="speed",
            step=self.pending[-1][0] + 1,
            images_per_second=images / seconds,
            images_per_second_per_device=images / seconds / len(trainer.devices),
            data_wait=self._waited / seconds,
        )
        self.pending = []
        return True

    def _is_finite(self, done: int) -> bool:
        """Of the state: an update can overflow though its loss and gradient did not."""
        name = leaf_not_finite(self.state)
        if name:
            self.log.write(kind="not_finite", step=done - 1, where=f"the new {name}")
        return name is None

    def _table(self, layers: LayerStats, rate: float) -> dict[str, dict[str, float]]:
        """Each leaf's ‖w‖, ‖g‖, λ and γλ."""
        columns = layers._asdict() | {"local_rate": rate * layers.trust_ratio}
        return {
            name: {key: column[i].item() for key, column in columns.items()}
            for i, name in enumerate(self.trainer.layer_names)
        }

    def _where(self, step: int, grad_norm: np.ndarray) -> str:
        """The first layer that was not finite: found by running the step again."""
        trainer = self.trainer
        batch = trainer.batch(self.seed, step)
        found = first_not_finite(trainer.model, self.state, batch, trainer.plan.slot)
        if found:
            return found
        lost = np.flatnonzero(~np.isfinite(grad_norm))
        if not lost.size:
            return "the loss"
        names = [trainer.layer_names[i] for i in lost]
        return f"the gradients of {len(names)} leaves, {names[0]} among them"

    def _evaluate(self, done: int, epoch: float) -> None:
        assert_replicated(self.state)
        self.scores = self.trainer.evaluate(self.state)
        self.log.write(
            kind="epoch",
            epoch=epoch,
            step=done,
            split=self.trainer.config.data.evaluate_on,
            **asdict(self.scores),
            seconds=self.seconds,
        )

    def _result(self, *, diverged: bool) -> Result:
        scores = self.scores or self.trainer.evaluate(self.state)
        result = Result(
            **asdict(scores),
            updates=int(self.state.step),
            diverged=diverged,
            seconds=self.seconds,
        )
        self.log.write(kind="result", **asdict(result))
        return result


@contextmanager
def _stop_signals() -> Iterator[Sequence[int]]:
    """A list to which SIGTERM and SIGINT add themselves; a second one acts at once."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(signum: int, frame: object) -> None:
        received.append(signum)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    # Python lets the main thread alone handle signals.
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGINT):
            before[signum] = signal.signal(signum, receive)
    try:
        yield received
    finally:
        restore()
