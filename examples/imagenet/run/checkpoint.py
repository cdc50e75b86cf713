"""Checkpoints of a run with orbax: the newest few and the one of the best accuracy.

A checkpoint holds the whole `TrainState`, whose step is the position in the data, and
the settings. A run with another network, optimizer or data cannot resume from it.
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
from orbax.checkpoint import checkpoint_managers as policies

from ..config import FACTS, Config, settings
from ..flags import flag
from ..log import LOG
from ..provenance import versions
from ..step.step import TrainState

_FOLDER = "checkpoints"
_ACCURACY = "accuracy"
# How messages call the facts of the data that must match, besides the flags.
_NAMES = {
    "images": "the number of training images",
    "content": "what --data holds (a fingerprint)",
}


# tensorstore adds details such as " [os_error_code='28']" to its messages; those of an
# array that could not be opened are pages long.
_DETAILS = re.compile(r""" \[[\w ]+='(?:[^'\\]|\\.)*'\]""")


class NotSaved(Exception):
    """Raised when a checkpoint cannot be written. Earlier checkpoints stay intact."""


def cause(error: Exception) -> str:
    """Returns the end of an error's message, where orbax and tensorstore say why."""
    text = _DETAILS.sub("", " ".join(str(error).split()))
    return text if len(text) <= 160 else f"… {text[-160:]}"


class Checkpoints:
    """A context manager that saves and restores the checkpoints of a run's folder.

    A run can only resume if its settings and `same`, which identifies the data, equal
    those in the newest checkpoint. Otherwise ValueError is raised with the differences.
    The values in `reported` may differ from those in the checkpoint; the attribute
    `changes` lists these differences. Every process must call `save`.
    """

    def __init__(
        self, config: Config, same: Mapping[str, Any], reported: Mapping[str, Any]
    ) -> None:
        self._config, self._reported = settings(config) | dict(same), dict(reported)
        newest = policies.LatestN(config.run.checkpoints)
        best = policies.BestN(get_metric_fn=_accuracy, n=1)
        self._manager = ocp.CheckpointManager(
            (Path(config.run.out) / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                # Makes orbax keep the metrics on disk, for a run that resumes.
                best_fn=_accuracy,
                # Deletes the incomplete checkpoint that a killed run leaves.
                cleanup_tmp_directories=True,
            ),
        )
        self.changes: list[str] = []
        self._closed = False
        self._record = self._read_record()

    def save(
        self, state: TrainState, step: int, seconds: float, accuracy: float | None
    ) -> None:
        """Copies the state to host memory, and returns while a thread writes it.

        Waits first until the previous checkpoint is written. `accuracy` is None if the
        state has not been evaluated.
        """
        # NumPy arrays can be restored to any number of processes and devices.
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
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(record)
                ),
                metrics={_ACCURACY: accuracy},
                force=True,
            )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the newest state, in host memory, and the record saved with it.

        Returns None if there is no checkpoint. `like` gives shapes and dtypes.
        """
        if self._record is None:
            return None
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        what = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        saved = self._manager.restore(self.newest, args=what)
        return saved["state"], self._record

    @property
    def any(self) -> bool:
        """Whether there was a checkpoint to resume from."""
        return self._record is not None

    @property
    def newest(self) -> int | None:
        """The number of updates of the newest checkpoint, None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def check(self) -> None:
        """Raises NotSaved if the checkpoint that is being written has failed."""
        with self._explained():
            self._manager.check_for_errors()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process failed, not the disk
            raise
        # The threads of orbax and tensorstore raise many kinds of errors.
        except Exception as error:
            names = os.listdir(self._manager.directory)
            left = max((int(name) for name in names if name.isdigit()), default="none")
            raise NotSaved(
                f"--out: a checkpoint could not be saved ({cause(error)}); remove the"
                f" cause, then --existing resume continues from the newest complete"
                f" checkpoint (after update: {left})"
            ) from error

    def _read_record(self) -> dict[str, Any] | None:
        """Returns the newest checkpoint's record: settings, training time and versions.

        Raises ValueError if this run has settings with which it cannot resume from it.
        """
        step = self.newest
        if step is None:
            return None
        what = ocp.args.Composite(run=ocp.args.JsonRestore())
        record: dict[str, Any] = self._manager.restore(step, args=what)["run"]
        if changes := list(_differences(record["config"], self._config)):
            raise ValueError(
                f"--existing resume: the checkpoint in --out has other settings:"
                f" {'; '.join(changes)}; give the same ones, or another --out"
            )
        for name, value in self._reported.items():
            old = record["reported"].get(name, value)
            if value != old:
                self.changes.append(f"{name}: {value} instead of {old}")
        return record

    def close(self) -> None:
        """Waits until all processes have written their checkpoints."""
        if self._closed:
            return
        self._closed = True
        with self._explained():
            self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # Closing waits for all processes, of which an error may have ended only this.
        if kind is None or jax.process_count() == 1:
            self.close()


def exist(out: str | Path) -> bool:
    """Returns True if the folder `out` holds a run's log or checkpoints.

    They need not be complete.
    """
    folder, log = Path(out) / _FOLDER, Path(out) / LOG
    return log.exists() or (folder.is_dir() and any(folder.iterdir()))


def remove(out: str | Path) -> None:
    """Deletes a run's checkpoints and log from the folder `out`."""
    if (folder := Path(out) / _FOLDER).is_dir():
        shutil.rmtree(folder)
    (Path(out) / LOG).unlink(missing_ok=True)


def _accuracy(metrics: dict[str, float | None]) -> float:
    found = metrics[_ACCURACY]
    return -math.inf if found is None else found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yields a text for each setting that a resumed run has changed but must not."""
    for key, value in new.items():
        facts = FACTS.get(key)
        # A tuple comes back from JSON as a list.
        plain = list(value) if isinstance(value, tuple) else value
        if old.get(key) != plain and not (facts and facts.resume):
            name = flag(facts.name) if facts else _NAMES.get(key, flag(key))
            yield f"{name} was {old.get(key)!r}, now {value!r}"
