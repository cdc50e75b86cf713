"""Writes the metrics of updates to the log, and measures the time of training."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lars_optax import LayerStats

from ..config import Run
from ..data.dataset import Batch, Batches, Broken, DataLost
from ..log import Log
from ..step.diagnose import first_not_finite, leaf_not_finite
from ..step.step import TrainState
from .cluster import gather
from .experiment import Experiment

# The scalar metrics of an update that are in its record in the log.
LOGGED = ("loss", "accuracy", "noise", "signal", "noise_scale")
IN_FLIGHT = 2  # steps that may be unfinished when the next one begins


@dataclass
class Recorder:
    """Collects the metrics of updates on the devices, and logs several at once."""

    experiment: Experiment
    run: Run
    log: Log
    seconds: float  # of training so far, without evaluation and checkpoints
    alive: Callable[[], None]  # called at each sign of progress

    def __post_init__(self) -> None:
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._broken: list[Broken] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self._start, self._waited = time.perf_counter(), 0.0

    @property
    def unlogged(self) -> int:
        """Number of updates that are not in the log yet."""
        return len(self._pending)

    def next_batch(self, batches: Batches) -> Batch:
        """Returns the next batch; the time this takes counts as waiting for data."""
        start = time.perf_counter()
        batch, broken = next(batches)
        self._waited += time.perf_counter() - start
        self.watch(broken)
        return batch

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps the metrics of an update, which the devices may still be computing."""
        self._pending.append((step, metrics))
        # Steps that wait for a GPU hold their images in its memory.
        if len(self._pending) > IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - IN_FLIGHT][1])

    def watch(self, broken: tuple[Broken, ...]) -> None:
        """Notes unreadable images of a batch; raises DataLost if --broken is stop."""
        self.alive()
        self._broken += broken
        if broken and self.experiment.data.broken == "stop":
            path, reason = broken[0]
            raise DataLost(
                f"cannot read the image {path!r}: {reason}; put back the"
                " file as it was when the run began, or give --broken blank; the run"
                " can resume if the data is the same as at its start; python -m"
                " examples.imagenet.prepare DIR lists all such images"
            )

    def log_broken(self, done: int) -> None:
        """Logs the unreadable images of all processes since the last call."""
        for text in gather([f"{path}\t{reason}" for path, reason in self._broken]):
            path, reason = text.rsplit("\t", 1)
            self.log.write(kind="broken", step=done, path=path, reason=reason)
        self._broken = []

    def flush(self, state: TrainState) -> bool:
        """Logs the updates kept so far; returns whether they and the state are finite.

        The state can overflow although loss and gradients are finite.
        """
        if not self._pending:
            return True
        experiment, every = self.experiment, self.run.layers_every
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            epoch, rate = experiment.epoch(step), experiment.schedule.rates[step].item()
            scores = {k: metrics[k].item() for k in LOGGED if k in metrics}
            when = {"step": step, "epoch": epoch, "learning_rate": rate}
            self.log.write(kind="step", **when, **scores)
            layers = metrics["layers"]
            if not metrics["finite"]:
                where = self._where(state, step, layers)
                self.log.write(kind="not_finite", step=step, where=where)
                return False
            if every and step % every == 0:
                table = self._table(layers, rate)
                self.log.write(kind="layers", step=step, layers=table)
        speed = len(self._pending) * experiment.batching.batch_size / seconds
        last, self._pending = self._pending[-1][0], []
        self.log.write(
            kind="speed",
            step=last + 1,
            images_per_second=speed,
            images_per_second_per_device=speed / len(experiment.devices),
            data_wait=self._waited / seconds,
        )
        # The noise scale is a measurement. It is not finite if its signal is 0.
        if name := leaf_not_finite(state._replace(noise_scale=None)):
            self.log.write(kind="not_finite", step=last, where=f"the new {name}")
        return name is None

    def _table(self, layers: LayerStats, rate: float) -> dict[str, dict[str, float]]:
        """Returns each parameter's ‖w‖, ‖g‖, trust ratio λ and learning rate γλ."""
        columns = layers._asdict() | {"local_rate": rate * layers.trust_ratio}
        return {
            name: {key: column[i].item() for key, column in columns.items()}
            for i, name in enumerate(self.experiment.layer_names)
        }

    def _where(self, state: TrainState, step: int, layers: LayerStats) -> str:
        """Returns where a value that is not finite arose.

        If the statistics of the layers do not tell, it runs the network again.
        """
        ratios = np.isfinite(layers.trust_ratio)
        names = self.experiment.layer_names
        if np.isfinite(layers.grad_norm).all() and not ratios.all():
            return f"the trust ratio of {names[ratios.argmin()]}"
        experiment, slot = self.experiment, self.experiment.plan.images_per_slot
        batch = experiment.batch(self.run.seed, step)
        # On the host, as one process cannot compute with the others' copies.
        state = jax.device_get(state)
        found = first_not_finite(experiment.model, state, batch, slot, self.alive)
        if found or np.isfinite(layers.grad_norm).all():
            return found or "the loss"
        not_finite = np.flatnonzero(~np.isfinite(layers.grad_norm))
        first = names[not_finite[0]]
        return f"the gradients of {len(not_finite)} parameters, {first} among them"
