"""What a run's updates leave in the log, fetched from the devices now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from lars_optax import LayerStats

from ..config import Run
from ..data.dataset import Broken, DataLost
from ..log import Log
from ..step.diagnose import first_not_finite, leaf_not_finite
from ..step.step import TrainState
from .cluster import gather
from .experiment import Experiment

_IN_FLIGHT = 2  # steps behind the one just begun that need not have ended


class Recorder:
    """Keeps what is not logged yet, and the clock of training alone.

    `seconds`: of training before; `alive` is called whenever there is progress.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        log: Log,
        seconds: float,
        alive: Callable[[], None],
    ) -> None:
        self.experiment, self.run, self.log = experiment, run, log
        self.seconds, self._alive = seconds, alive
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._broken: list[Broken] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self._start, self._waited = time.perf_counter(), 0.0

    @property
    def unlogged(self) -> int:
        """Updates not logged yet."""
        return len(self._pending)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """An update on its way."""
        self._pending.append((step, metrics))
        # A step that waits for its turn on a GPU holds its images there.
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - _IN_FLIGHT][1])

    def watch(self, broken: tuple[Broken, ...]) -> None:
        """What of a batch could not be read; with --broken stop, DataLost."""
        self._alive()
        self._broken += broken
        if broken and self.experiment.data.broken == "stop":
            path, reason = broken[0]
            raise DataLost(
                f"{path!r}: {reason}; mend or replace it (without it this would be"
                " another run), or give --broken blank; python -m"
                " examples.imagenet.prepare DIR names all such files"
            )

    def log_broken(self, done: int) -> None:
        """Names every image that was not read since, of every process."""
        texts = [f"{path}\t{reason}" for path, reason in self._broken]
        for text in gather(texts):
            path, reason = text.rsplit("\t", 1)
            self.log.write(kind="broken", step=done, path=path, reason=reason)
        self._broken = []

    def flush(self, state: TrainState) -> bool:
        """Fetches and logs the pending steps; False if one, or the state, is lost.

        An update can overflow though its loss and its gradients did not.
        """
        if not self._pending:
            return True
        experiment, every = self.experiment, self.run.layers_every
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            rate = experiment.schedule.rates[step].item()
            self.log.write(
                kind="step",
                step=step,
                epoch=experiment.epoch(step),
                learning_rate=rate,
                loss=metrics["loss"].item(),
                accuracy=metrics["accuracy"].item(),
            )
            layers = metrics["layers"]
            if not metrics["finite"]:
                where = self._where(state, step, layers.grad_norm)
                self.log.write(kind="not_finite", step=step, where=where)
                return False
            if every and step % every == 0:
                table = self._table(layers, rate)
                self.log.write(kind="layers", step=step, layers=table)
        images = len(self._pending) * experiment.batching.batch_size
        self.log.write(
            kind="speed",
            step=self._pending[-1][0] + 1,
            images_per_second=images / seconds,
            images_per_second_per_device=images / seconds / len(experiment.devices),
            data_wait=self._waited / seconds,
        )
        last, self._pending = self._pending[-1][0], []
        if name := leaf_not_finite(state):
            self.log.write(kind="not_finite", step=last, where=f"the new {name}")
        return name is None

    def _table(self, layers: LayerStats, rate: float) -> dict[str, dict[str, float]]:
        """Each leaf's ‖w‖, ‖g‖, λ and γλ."""
        columns = layers._asdict() | {"local_rate": rate * layers.trust_ratio}
        return {
            name: {key: column[i].item() for key, column in columns.items()}
            for i, name in enumerate(self.experiment.layer_names)
        }

    def _where(self, state: TrainState, step: int, grad_norm: np.ndarray) -> str:
        """The first layer that was not finite: found by running the step again."""
        experiment = self.experiment
        batch, slot = (
            experiment.batch(self.run.seed, step),
            experiment.plan.images_per_slot,
        )
        # On the host, as one process cannot compute with the others' copies.
        state = jax.device_get(state)
        found = first_not_finite(experiment.model, state, batch, slot, self._alive)
        if found:
            return found
        lost = np.flatnonzero(~np.isfinite(grad_norm))
        if not lost.size:
            return "the loss"
        names = [experiment.layer_names[i] for i in lost]
        return f"the gradients of {len(names)} leaves, {names[0]} among them"
