"""Checkpoints of a run with orbax: the newest few and the best, written meanwhile.

A checkpoint holds the whole `TrainState` (its step is the position in the data) and a
record of the run. Refuses to go on with one of another network, recipe or data; says
what else changes.
"""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from ..config import FACTS, Config, settings
from ..flags import flag
from ..log import LOG
from ..provenance import versions
from ..step.step import TrainState

_FOLDER = "checkpoints"
_ACCURACY = "accuracy"
# What is compared beside the flags.
_NAMES = {
    "images": "the number of training images",
    "content": "what --data holds (a fingerprint)",
}


# As in " [os_error_code='28']", which tensorstore adds behind its messages: of an array
# that could not be opened the whole description.
_ADDED = re.compile(r""" \[[\w ]+='(?:[^'\\]|\\.)*'\]""")


class NotSaved(Exception):
    """A checkpoint could not be written; those before it are whole."""


def cause(error: Exception) -> str:
    """The end of the message in one line: orbax and tensorstore name the cause last."""
    text = _ADDED.sub("", " ".join(str(error).split()))
    return text if len(text) <= 160 else f"… {text[-160:]}"


class Checkpoints:
    """The checkpoints in a run's folder; close it, or use it as a context.

    `same`: of the data, compared with the configuration; ValueError if the newest
    checkpoint is of another run, which names every difference. `reported`: what may
    change on resume but affects the results; `changes` says what did. Every process
    saves.
    """

    def __init__(
        self,
        config: Config,
        same: Mapping[str, Any],
        reported: Mapping[str, Any],
    ) -> None:
        self._config, self._reported = settings(config) | dict(same), dict(reported)
        newest, best = (
            LatestN(config.run.checkpoints),
            BestN(get_metric_fn=_accuracy, n=1),
        )
        self._manager = ocp.CheckpointManager(
            (Path(config.run.out) / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([newest, best]),
                # Without it orbax forgets the metrics when the process ends.
                best_fn=_accuracy,
                # What a killed run was writing.
                cleanup_tmp_directories=True,
            ),
        )
        self.changes: list[str] = []
        self._closed = False
        self._record = self._read_record()

    def save(
        self, state: TrainState, step: int, seconds: float, accuracy: float | None
    ) -> None:
        """Copies the state to host memory and goes on; a thread writes it to disk.

        Waits for the checkpoint before this one. `accuracy` is None where the state has
        not been evaluated.
        """
        # Arrays of NumPy, which any process can write and any number of devices take.
        state = jax.tree.map(np.array, state)
        record = {
            "config": self._config,
            "reported": self._reported,
            "seconds": seconds,
            "evaluated": accuracy is not None,
            "versions": versions(),
        }
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    run=ocp.args.JsonSave(record),
                ),
                metrics={_ACCURACY: accuracy},
                force=True,
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state, on the host, and its record; None if there is none."""
        if self._record is None:
            return None
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        saved = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
        )
        return saved["state"], self._record

    @property
    def any(self) -> bool:
        """Whether there was one to go on from."""
        return self._record is not None

    @property
    def newest(self) -> int | None:
        """The step of the newest."""
        step: int | None = self._manager.latest_step()
        return step

    def check(self) -> None:
        """Raises NotSaved if the checkpoint under way has failed."""
        with self._explained():
            self._manager.check_for_errors()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of the processes, not of the disk
            raise
        # Of orbax's threads and of tensorstore's, whose kinds of error are many.
        except Exception as error:
            whole = self._whole()
            left = f"the newest whole one is of step {whole}"
            if whole is None:
                left = "there is none"
            raise NotSaved(
                f"--out: a checkpoint could not be saved ({cause(error)}); {left}"
            ) from error

    def _whole(self) -> int | None:
        """The newest checkpoint on disk."""
        names = os.listdir(self._manager.directory)
        return max((int(name) for name in names if name.isdigit()), default=None)

    def _read_record(self) -> dict[str, Any] | None:
        """Of the newest checkpoint; ValueError names every setting that differs."""
        step = self._manager.latest_step()
        if step is None:
            return None
        what = ocp.args.Composite(run=ocp.args.JsonRestore())
        record: dict[str, Any] = self._manager.restore(step, args=what)["run"]
        old = record["config"]
        if changes := list(_differences(old, self._config)):
            raise ValueError(
                f"--existing resume: the checkpoint of step {step} is of another run:"
                f" {'; '.join(changes)}. Give the same flags, or another --out"
            )
        reported = record["reported"]
        for name, value in self._reported.items():
            if value != reported.get(name, value):
                self.changes.append(f"{name}: {value}, and {reported[name]} until now")
        return record

    def close(self) -> None:
        """Waits for what is still being written, by all processes."""
        if self._closed:
            return
        self._closed = True
        with self._explained():
            self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # Of several processes an error may end one alone, which must not wait for what
        # the others would have to finish with it.
        if kind is None or jax.process_count() == 1:
            self.close()


def exist(out: str | Path) -> bool:
    """Whether an earlier run left checkpoints there, whole ones or not, or a log."""
    folder, log = Path(out) / _FOLDER, Path(out) / LOG
    return log.exists() or (folder.is_dir() and any(folder.iterdir()))


def remove(out: str | Path) -> None:
    """Deletes checkpoints and log."""
    if (folder := Path(out) / _FOLDER).is_dir():
        shutil.rmtree(folder)
    (Path(out) / LOG).unlink(missing_ok=True)


def _accuracy(metrics: dict[str, float | None]) -> float:
    found = metrics[_ACCURACY]
    return -math.inf if found is None else found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key, value in new.items():
        facts = FACTS.get(key)
        # A tuple comes back from JSON as a list.
        plain = list(value) if isinstance(value, tuple) else value
        if old.get(key) != plain and not (facts and facts.resume):
            name = flag(facts.name) if facts else _NAMES.get(key, flag(key))
            yield f"{name} was {old.get(key)!r}, now {value!r}"
