"""The training loop: updates, an evaluation after each epoch, checkpoints and a log.

A loss, gradient or trust ratio that is not finite ends the run, and the log says where
it arose. The update leaves the state unchanged, and the result has the scores of this
state. If all three are finite and the new state is not, the run ends when it next
writes to the log. The result then has the scores of the new state. A state that is not
finite is never saved. A signal, or an image that cannot be read, ends the run after a
checkpoint.
"""

import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import Cluster, Run
from ..data.dataset import DataLost
from ..flags import check
from ..log import LOG, Log, Show
from ..provenance import versions
from ..step.devices import assert_replicated
from ..step.step import TrainState
from .checkpoint import Checkpoints
from .cluster import StopSignals, Watchdog, collective, raise_everywhere
from .experiment import Experiment, Scores
from .profile import Profile
from .recorder import Recorder


@dataclass(frozen=True)
class Result(Scores):
    """How a run ended: the scores of its last state, and its length."""

    updates: int
    diverged: bool
    seconds: float  # of training, without compilation, evaluation and checkpoints


class Stopped(Exception):
    """Raised when a signal ended a run, after saving a checkpoint if it keeps any."""

    def __init__(self, signum: int, updates: int, saved: bool) -> None:
        then = "--existing resume continues from there" if saved else "nothing is saved"
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} after update {updates}; {then}")
        self.signum, self.updates = signum, updates


def check_run(experiment: Experiment, run: Run) -> None:
    """Raises ValueError if --profile reaches beyond the last update of the run."""
    updates, profiled = experiment.schedule.updates, run.profiled
    remedy = f"the run has {updates} updates; give a range within them"
    check(not profiled or profiled.stop <= updates, "profile", run.profile, remedy)


def fit(
    experiment: Experiment,
    run: Run,
    show: Show = lambda record: None,
    checkpoints: Checkpoints | None = None,
    cluster: Cluster | None = None,
) -> Result:
    """Trains from the newest of `checkpoints`, or from scratch if there is none.

    The first process logs to the run's folder and calls `show` with every record.
    Raises Stopped on SIGTERM or SIGINT, after saving a checkpoint, if there are
    `checkpoints` or several processes; otherwise signals have their usual effect.
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
        log = stack.enter_context(
            raise_everywhere(lambda: Log(path, show, done if restored else None))
        )
        if log.empty:
            settings = asdict(experiment.config(run, cluster=cluster))
            log.write(kind="config", **settings, **experiment.facts())
        if restored and checkpoints:
            log.write(
                kind="resume",
                step=done,
                versions=versions(),
                saved_by=record["versions"],
                settings=checkpoints.settings,
                changes=checkpoints.changes,
                damaged=checkpoints.damaged,
            )
        if experiment.dataset.notes:
            log.write(kind="data", step=done, notes=experiment.dataset.notes)
        profile = Profile(run.profiled, out / "profile", experiment.process)
        stack.enter_context(profile)
        watchdog = stack.enter_context(Watchdog(cluster.patience))
        recorder = Recorder(experiment, run, log, seconds, watchdog.feed)
        training = TrainingRun(recorder, profile, checkpoints, state, done)
        if checkpoints:
            stack.enter_context(checkpoints)
        stops = None
        if checkpoints or experiment.plan.processes > 1:
            stops = stack.enter_context(StopSignals())
        if restored and not record["evaluated"]:
            training.evaluate_epoch()
            recorder.restart_clock()
        return training.run(stops)


@dataclass
class TrainingRun:
    """A training in progress: its state after `done` updates."""

    recorder: Recorder
    profile: Profile
    checkpoints: Checkpoints | None
    state: TrainState
    done: int
    scores: Scores | None = None  # of the state, once it is evaluated
    diverged: bool = False

    def __post_init__(self) -> None:
        self.experiment, self.settings = self.recorder.experiment, self.recorder.run
        self.epochs = self.experiment.schedule.epochs
        self.batches = self.experiment.batches(self.settings.seed, self.done)

    def run(self, stops: StopSignals | None = None) -> Result:
        """Trains until the end, a signal, or a value that is not finite."""
        try:
            while self.done < self.experiment.schedule.updates:
                self._update()
                stop = stops.agreed(self.done) if stops else None
                if not (stop or self._due()):
                    continue
                if not self.recorder.flush(self.state):
                    return self._diverged()
                self.evaluate_epoch()
                if self.checkpoints:
                    self.checkpoints.check()  # raises if the last one was not saved
                    if stop or self._save_due():
                        self._save(self.checkpoints)
                if stop:
                    self.recorder.log.write(kind="stopped", step=self.done)
                    if self.checkpoints:
                        self.checkpoints.close()
                    raise Stopped(stop, self.done, self.checkpoints is not None)
                self.recorder.restart_clock()
            return self._result()
        except DataLost:
            # One of several processes cannot save without the others.
            alone = self.experiment.plan.processes == 1
            if self.checkpoints and alone and not self.diverged:
                self.recorder.log_broken(self.done)
                finite = self.recorder.flush(self.state)
                if finite and self.checkpoints.newest != self.done:
                    self._save(self.checkpoints)
            raise

    def _due(self) -> bool:
        """Returns True if the updates since the last write must be logged now.

        That is after every `log_every` updates, at an evaluation and at a checkpoint.
        """
        full = self.recorder.unlogged == self.settings.log_every
        return full or self.done in self.epochs or self._save_due()

    def _save_due(self) -> bool:
        every = self.settings.checkpoint_every
        due = self.done in self.epochs or (every > 0 and self.done % every == 0)
        return due and self.checkpoints is not None

    def _update(self) -> None:
        with self.profile.step(self.done, self.state):
            batch = self.recorder.next_batch(self.batches)
            self.state, metrics = self.experiment.step(self.state, batch)
            self.recorder.add(self.done, metrics)
        self.done += 1
        self.scores = None

    def _save(self, checkpoints: Checkpoints) -> None:
        self.recorder.log_broken(self.done)
        accuracy = self.scores.accuracy if self.scores else None
        checkpoints.save(self.state, self.done, self.recorder.seconds, accuracy)

    def _diverged(self) -> Result:
        """Returns the result of a diverged run: the scores of its last state.

        The failed update left this state unchanged if its loss, a gradient or a trust
        ratio was not finite.
        """
        self.diverged = True
        self.done = int(self.state.step)
        epoch = self.experiment.epoch(self.done)
        self._evaluate(self.epochs.get(self.done, epoch))
        return self._result()

    def evaluate_epoch(self) -> None:
        """Evaluates the state and logs its scores if the last update ended an epoch."""
        if self.done in self.epochs:
            self._evaluate(self.epochs[self.done])

    def _evaluate(self, epoch: float) -> None:
        with collective("processes compared their states"):
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

    def _result(self) -> Result:
        watch, seconds = self.recorder.watch, self.recorder.seconds
        scores = self.scores or self.experiment.evaluate(self.state, watch)
        updates = int(self.state.step)
        result = Result(
            **asdict(scores), updates=updates, diverged=self.diverged, seconds=seconds
        )
        self.recorder.log.write(kind="result", **asdict(result))
        return result
