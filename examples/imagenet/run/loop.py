"""The loop: updates, an exact evaluation after each epoch, checkpoints, a log of all.

A loss or gradient that is not finite ends the run: the log says where it arose, and the
result is that of the last state. A state that is not finite is never saved. A signal,
and images that cannot be read, end the run with a checkpoint.
"""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import Cluster, Run
from ..data.dataset import DataLost
from ..flags import check
from ..log import LOG, Log, Record
from ..provenance import versions
from ..step.devices import assert_replicated
from ..step.step import TrainState
from .checkpoint import Checkpoints
from .cluster import StopSignals, Watchdog
from .experiment import Experiment, Scores
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


def check_run(experiment: Experiment, run: Run) -> None:
    """Raises ValueError if the run asks for updates that the experiment lacks."""
    updates, profiled = experiment.schedule.updates, run.profiled
    remedy = f"the run has {updates} updates; give two of them"
    check(not profiled or profiled.stop <= updates, "profile", run.profile, remedy)


def fit(
    experiment: Experiment,
    run: Run,
    show: Callable[[Record], None] = lambda record: None,
    checkpoints: Checkpoints | None = None,
    cluster: Cluster | None = None,
) -> Result:
    """Trains from the run's seed, or from the newest checkpoint; logs to its folder.

    With `checkpoints`, SIGTERM and SIGINT save one and raise `Stopped`; so do several
    processes, with or without. All of them save, and the first logs.
    """
    check_run(experiment, run)
    experiment.compile()
    state, seconds, done = experiment.init(run.seed), 0.0, 0
    restored = checkpoints.restore(state) if checkpoints else None
    if restored:
        state, record = experiment.place(restored[0]), restored[1]
        seconds, done = record["seconds"], int(state.step)
    out, cluster = Path(run.out), cluster or Cluster()
    with ExitStack() as stack:
        path = None if experiment.process else out / LOG
        log = stack.enter_context(Log(path, show, done if restored else None))
        if restored and checkpoints:
            log.write(
                kind="resume",
                step=done,
                versions=versions(),
                saved_by=restored[1]["versions"],
                changes=checkpoints.changes,
            )
        else:
            settings = asdict(experiment.config(run, cluster=cluster))
            log.write(kind="config", **settings, **experiment.facts())
        if experiment.dataset.notes:
            log.write(kind="data", step=done, notes=experiment.dataset.notes)
        profile = Profile(run.profiled, out / "profile", experiment.process)
        stack.enter_context(profile)
        watchdog = stack.enter_context(Watchdog(cluster.patience))
        recorder = Recorder(experiment, run, log, seconds, watchdog.feed)
        training = TrainingRun(
            experiment, run, state, done, recorder, profile, checkpoints
        )
        if checkpoints:
            stack.enter_context(checkpoints)
        # Alone and without checkpoints a signal has its usual effect.
        listens = checkpoints or experiment.plan.processes > 1
        stops = stack.enter_context(StopSignals()) if listens else None
        if restored and not restored[1]["evaluated"]:
            training.evaluate_epoch()
            recorder.restart_clock()
        return training.run(stops)


class TrainingRun:
    """A run on its way: the state after `done` updates, and its scores once known."""

    def __init__(
        self,
        experiment: Experiment,
        run: Run,
        state: TrainState,
        done: int,
        recorder: Recorder,
        profile: Profile,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.experiment, self.schedule = experiment, experiment.schedule
        self._log_every, self._save_every = run.log_every, run.checkpoint_every
        self.recorder, self.profile, self.checkpoints = recorder, profile, checkpoints
        self.state, self.done = state, done
        self.batches = experiment.batches(run.seed, done)
        self.scores: Scores | None = None

    def run(self, stops: StopSignals | None = None) -> Result:
        """Updates to the end, to a signal, or to a number that is not finite."""
        try:
            while self.done < self.schedule.updates:
                self._update()
                stop = stops.agreed(self.done) if stops else None
                if not (stop or self._due()):
                    continue
                if not self.recorder.flush(self.state):
                    return self._diverged()
                self.evaluate_epoch()
                self._save_if(bool(stop) or self._save_due())
                if stop:
                    raise self._stopped(stop)
                self.recorder.restart_clock()
            return self._result(diverged=False)
        except DataLost:
            # Of several processes none can save without the others.
            if self.experiment.plan.processes == 1:
                self._save_what_is_done()
            raise

    def _due(self) -> bool:
        """Whether to log now: the log is full, an epoch ends, or a save is due."""
        full = self.recorder.unlogged == self._log_every
        return full or self.done in self.schedule.epochs or self._save_due()

    def _save_due(self) -> bool:
        every = self._save_every
        asked = every > 0 and self.done % every == 0
        return bool(self.checkpoints) and (asked or self.done in self.schedule.epochs)

    def _update(self) -> None:
        with self.profile.step(self.done, self.state):
            with self.recorder.waiting():
                batch, broken = next(self.batches)
            self.recorder.watch(broken)
            self.state, metrics = self.experiment.step(self.state, batch)
            self.recorder.add(self.done, metrics)
        self.done += 1
        self.scores = None

    def _save_if(self, wanted: bool) -> None:
        """Also raises NotSaved if the checkpoint before has failed."""
        if self.checkpoints:
            self.checkpoints.check()
            if wanted:
                self._save(self.checkpoints)

    def _save(self, checkpoints: Checkpoints) -> None:
        self.recorder.log_broken(self.done)
        accuracy = self.scores.accuracy if self.scores else None
        checkpoints.save(self.state, self.done, self.recorder.seconds, accuracy)

    def _save_what_is_done(self) -> None:
        if not self.checkpoints:
            return
        self.recorder.log_broken(self.done)
        if self.recorder.flush(self.state) and self.checkpoints.newest != self.done:
            self._save(self.checkpoints)

    def _stopped(self, signum: int) -> Stopped:
        self.recorder.log.write(kind="stopped", step=self.done)
        if self.checkpoints:
            self.checkpoints.close()
        return Stopped(signum, self.done, self.checkpoints is not None)

    def _diverged(self) -> Result:
        """The scores are those of the last update that counted."""
        self.done = int(self.state.step)
        epoch = self.experiment.epoch(self.done)
        self._evaluate(self.schedule.epochs.get(self.done, epoch))
        return self._result(diverged=True)

    def evaluate_epoch(self) -> None:
        """If the updates done end one."""
        if self.done in self.schedule.epochs:
            self._evaluate(self.schedule.epochs[self.done])

    def _evaluate(self, epoch: float) -> None:
        assert_replicated(self.state)
        self.scores = self.experiment.evaluate(self.state, self.recorder.watch)
        self.recorder.log_broken(self.done)
        self.recorder.log.write(
            kind="epoch",
            epoch=epoch,
            step=self.done,
            split=self.experiment.data.evaluate_on,
            **asdict(self.scores),
            seconds=self.recorder.seconds,
        )

    def _result(self, *, diverged: bool) -> Result:
        scores = self.scores or self.experiment.evaluate(
            self.state, self.recorder.watch
        )
        result = Result(
            **asdict(scores),
            updates=int(self.state.step),
            diverged=diverged,
            seconds=self.recorder.seconds,
        )
        self.recorder.log.write(kind="result", **asdict(result))
        return result
