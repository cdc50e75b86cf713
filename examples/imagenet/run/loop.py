"""The loop: updates, an exact evaluation after each epoch, checkpoints, a log of all.

A loss or gradient that is not finite ends the run: the log says where it arose, and the
result is that of the last state. A state that is not finite is never saved. A signal,
and images that cannot be read, end the run with a checkpoint.
"""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.batches import DataLost
from ..log import Log, Record
from ..provenance import versions
from ..step.devices import assert_replicated
from ..step.step import TrainState
from .checkpoint import Checkpoints
from .cluster import StopSignals, Watchdog
from .experiment import Scores, Trainer
from .profile import Profile
from .recorder import Recorder


@dataclass(frozen=True)
class Result(Scores):
    updates: int
    diverged: bool
    seconds: float  # of training, without compilation, evaluation and saving


class Stopped(Exception):
    """A signal ended the run, after a checkpoint if it keeps any."""

    def __init__(self, signum: int, updates: int, saved: bool) -> None:
        then = "--existing resume goes on from there" if saved else "nothing was saved"
        name = signal.Signals(signum).name
        super().__init__(f"{name} after update {updates}; {then}")
        self.signum, self.updates = signum, updates


def fit(
    trainer: Trainer,
    seed: int,
    log_path: Path,
    show: Callable[[Record], None] = lambda record: None,
    checkpoints: Checkpoints | None = None,
) -> Result:
    """Trains from `seed`, or from the newest checkpoint; logs all it does.

    With `checkpoints`, SIGTERM and SIGINT save one and raise `Stopped`; so do several
    processes, with or without. All of them save, and the first logs.
    """
    config = trainer.config
    trainer.compile()
    state, seconds, done = trainer.init(seed), 0.0, 0
    restored = checkpoints.restore(state) if checkpoints else None
    if restored:
        state, record = trainer.place(restored[0]), restored[1]
        seconds, done = record["seconds"], int(state.step)
    with ExitStack() as stack:
        path = None if trainer.process else log_path
        log = stack.enter_context(Log(path, show, done if restored else None))
        _log_start(log, trainer, seed, done, restored, checkpoints)
        profile = Profile(
            config.run.profiled, log_path.parent / "profile", trainer.process
        )
        stack.enter_context(profile)
        watchdog = stack.enter_context(Watchdog(config.cluster.patience))
        recorder = Recorder(trainer, seed, log, seconds, watchdog.feed)
        training = TrainingRun(trainer, seed, state, done, recorder, profile)
        if checkpoints:
            stack.enter_context(checkpoints)
        # Alone and without checkpoints a signal has its usual effect.
        listens = checkpoints or trainer.plan.processes > 1
        stops = stack.enter_context(StopSignals()) if listens else None
        if restored and not restored[1]["evaluated"]:
            training.evaluate_epoch()
            recorder.restart_clock()
        return training.run(checkpoints, stops)


def _log_start(
    log: Log,
    trainer: Trainer,
    seed: int,
    done: int,
    restored: tuple[TrainState, dict[str, Any]] | None,
    checkpoints: Checkpoints | None,
) -> None:
    """The configuration, or what goes on from where; what is odd about the data."""
    config = trainer.config
    if restored and checkpoints:
        log.write(
            kind="resume",
            step=done,
            versions=versions(),
            saved_by=restored[1]["versions"],
            changes=checkpoints.changes,
        )
    else:
        settings = asdict(replace(config, run=replace(config.run, seed=seed)))
        log.write(kind="config", **settings, **trainer.facts())
    if trainer.data.notes:
        log.write(kind="data", step=done, notes=trainer.data.notes)


class TrainingRun:
    """A run on its way: the state after `done` updates, and its scores once known."""

    def __init__(
        self,
        trainer: Trainer,
        seed: int,
        state: TrainState,
        done: int,
        recorder: Recorder,
        profile: Profile,
    ) -> None:
        self.trainer, self.recorder, self.profile = trainer, recorder, profile
        self.state, self.done = state, done
        self.batches = trainer.batches(seed, done)
        self.scores: Scores | None = None

    def run(
        self, checkpoints: Checkpoints | None = None, stops: StopSignals | None = None
    ) -> Result:
        try:
            return self._run(checkpoints, stops)
        except DataLost:
            # Of several processes none can save without the others.
            if checkpoints and self.trainer.plan.processes == 1:
                self._save_what_is_done(checkpoints)
            raise

    def _run(
        self, checkpoints: Checkpoints | None, stops: StopSignals | None
    ) -> Result:
        run, recorder = self.trainer.config.run, self.recorder
        while self.done < self.trainer.updates:
            self._update()
            stop = stops.agreed(self.done) if stops else None
            ends_epoch = self.done in self.trainer.epochs
            asked = run.checkpoint_every and self.done % run.checkpoint_every == 0
            saves = checkpoints and (ends_epoch or asked or stop)
            if ends_epoch or saves or stop or recorder.unlogged == run.log_every:
                if not recorder.flush(self.state):
                    self.done = int(self.state.step)
                    done, trainer = self.done, self.trainer
                    self._evaluate(trainer.epochs.get(done, trainer.epoch(done)))
                    return self._result(diverged=True)
                self.evaluate_epoch()
                if checkpoints:
                    checkpoints.check()
                if checkpoints and saves:
                    self._save(checkpoints)
                if stop:
                    recorder.log.write(kind="stopped", step=self.done)
                    if checkpoints:
                        checkpoints.close()
                    raise Stopped(stop, self.done, checkpoints is not None)
                recorder.restart_clock()
        return self._result(diverged=False)

    def _update(self) -> None:
        with self.profile.step(self.done, self.state):
            with self.recorder.waiting():
                batch, broken = next(self.batches)
            self.recorder.watch(broken)
            self.state, metrics = self.trainer.step(self.state, batch)
            self.recorder.add(self.done, metrics)
        self.done += 1
        self.scores = None

    def _save(self, checkpoints: Checkpoints) -> None:
        self.recorder.log_broken(self.done)
        accuracy = self.scores.accuracy if self.scores else None
        checkpoints.save(self.state, self.done, self.recorder.seconds, accuracy)

    def _save_what_is_done(self, checkpoints: Checkpoints) -> None:
        self.recorder.log_broken(self.done)
        if self.recorder.flush(self.state) and checkpoints.newest != self.done:
            self._save(checkpoints)

    def evaluate_epoch(self) -> None:
        """If the updates done end one."""
        if self.done in self.trainer.epochs:
            self._evaluate(self.trainer.epochs[self.done])

    def _evaluate(self, epoch: float) -> None:
        assert_replicated(self.state)
        self.scores = self.trainer.evaluate(self.state, self.recorder.watch)
        self.recorder.log_broken(self.done)
        self.recorder.log.write(
            kind="epoch",
            epoch=epoch,
            step=self.done,
            split=self.trainer.config.data.evaluate_on,
            **asdict(self.scores),
            seconds=self.recorder.seconds,
        )

    def _result(self, *, diverged: bool) -> Result:
        scores = self.scores or self.trainer.evaluate(self.state, self.recorder.watch)
        result = Result(
            **asdict(scores),
            updates=int(self.state.step),
            diverged=diverged,
            seconds=self.recorder.seconds,
        )
        self.recorder.log.write(kind="result", **asdict(result))
        return result
