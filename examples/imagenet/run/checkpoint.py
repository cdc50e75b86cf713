"""Checkpoints of a run with orbax: the newest few and the one of the best accuracy.

A checkpoint holds the whole `TrainState`, whose step is the position in the data, the
settings, and a digest of both. A run with another network, optimizer or data cannot
resume from it. A damaged checkpoint is moved aside, and the one before is used instead.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from ..config import FACTS, Config, settings
from ..flags import flag
from ..log import LOG
from ..provenance import versions
from ..step.step import TrainState
from .cluster import PeerLost, TryAgain, collective, gather, raise_everywhere
from .storage_errors import cause, of_absence, of_resources, of_storage

_T = TypeVar("_T")
CHECKPOINTS = "checkpoints"
_ASIDE = "damaged_checkpoints"  # beside it
_LAST_WRITTEN = "_CHECKPOINT_METADATA"  # by orbax
_FILES = (_LAST_WRITTEN, "metrics/metrics", "run/metadata", "state/_METADATA")
_ACCURACY = "accuracy"
# How messages call the facts of the data that must match, besides the flags.
_NAMES = {
    "images": "the number of training images",
    "content": "what --data holds (a fingerprint)",
}


class NotSaved(Exception):
    """Raised when a checkpoint cannot be written. Earlier checkpoints stay intact."""


class Checkpoints:
    """A context manager that saves and restores the checkpoints of a run's folder.

    A run can only resume if its settings and `same`, which identifies the data, equal
    those in the newest checkpoint. Otherwise ValueError is raised with the differences.
    It is also raised if there are checkpoints, but none of them can be read. The values
    in `reported` may differ from those in the checkpoint; the attribute `changes` lists
    these differences. The attribute `settings` has the flags that affect the speed,
    which may differ too. The attribute `damaged` says which damaged checkpoints were
    moved, and where to, and which half-deleted ones were removed. Every process must
    call the constructor, `restore` and `save`.
    """

    def __init__(
        self, config: Config, same: Mapping[str, Any], reported: Mapping[str, Any]
    ) -> None:
        self._config, self._reported = settings(config) | dict(same), dict(reported)
        self._out = Path(config.run.out).absolute()
        self.changes: list[str] = []
        self.settings: dict[str, Any] = {}
        # The first process looks for damage, while the others wait.
        first = jax.process_index() == 0
        self.damaged = gather(
            raise_everywhere(lambda: list(_screen(self._out)) if first else [])
        )
        newest = policies.LatestN(config.run.checkpoints)
        best = policies.BestN(get_metric_fn=_accuracy, n=1)
        self._manager = ocp.CheckpointManager(
            self._out / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                # Makes orbax keep the metrics on disk, for a run that resumes.
                best_fn=_accuracy,
                # Deletes the incomplete checkpoint that a killed run leaves.
                cleanup_tmp_directories=True,
            ),
        )
        self._closed = False
        self._folder: int | None = None
        if first:
            # While it is open, the system gives its inode to no other folder.
            self._folder = os.open(self._out / CHECKPOINTS, os.O_RDONLY)
            self._stat = os.fstat(self._folder)
        self._record = self._from_newest(self._read_record)
        if self._record:
            self._compare(self._record)

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
        record["state"] = _digest_of_state(state)
        record["digest"] = _digest_of_record(record)
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
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        what = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))

        def read(step: int) -> tuple[TrainState, dict[str, Any]]:
            record = self._read_record(step)
            state: TrainState = self._manager.restore(step, args=what)["state"]
            found = int(state.step), _digest_of_state(state)
            if found != (step, record["state"]):
                raise ValueError("its arrays differ from what was saved")
            return state, record

        found = self._from_newest(read)
        if found:
            self._compare(found[1])
        return found

    def _from_newest(self, read: Callable[[int], _T]) -> _T | None:
        """Returns what `read` makes of the newest checkpoint that it can read.

        Moves aside those that some process cannot read. Raises TryAgain if the storage
        fails or the memory is too small, and ValueError if only damaged checkpoints are
        left.
        """

        def attempt(step: int) -> tuple[_T | None, list[str]]:
            try:
                return read(step), []
            except (jax.errors.JaxRuntimeError, PeerLost):
                raise
            # orbax and tensorstore raise many kinds of errors for damaged files.
            except Exception as error:
                why = cause(error) or type(error).__name__
                storage = of_storage(error) and not of_absence(error)
                if storage or of_resources(error):
                    raise TryAgain(
                        f"--out: the checkpoint of update {step} cannot be read"
                        f" ({why}); remove the cause, and start again"
                    ) from error
                return None, [why]

        while (step := self.newest) is not None:
            found, problems = raise_everywhere(partial(attempt, step))
            problems = gather(problems)
            if not problems:
                return found
            move = partial(self._set_aside_once, step, problems[0])
            self.damaged += gather(raise_everywhere(move))
            self._manager.reload()
        aside = self._out / _ASIDE
        if aside.is_dir() and any(aside.iterdir()):
            raise ValueError(
                "--existing resume: no checkpoint can be read"
                f" ({'; '.join(self.damaged) or f'{aside} has the damaged ones'}); move"
                f" a good copy into {self._out / CHECKPOINTS}, or give"
                " --existing replace to start anew, or another --out"
            )
        return None

    def _set_aside_once(self, step: int, why: str) -> list[str]:
        """Sets a checkpoint aside if this is the first process; returns what to say."""
        first = jax.process_index() == 0
        return [_set_aside(self._out, step, why)] if first else []

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
        # The threads of orbax and tensorstore raise many kinds of errors.
        except Exception as error:
            if jax.process_count() > 1 and not of_storage(error):
                with collective("processes saved a checkpoint"):
                    raise
            if not self._there():
                raise NotSaved(
                    f"--out: {self._out / CHECKPOINTS} was deleted or replaced during"
                    " the run, so that a checkpoint could not be saved"
                ) from error
            names = os.listdir(self._manager.directory)
            left = max((int(name) for name in names if name.isdigit()), default="none")
            raise NotSaved(
                f"--out: a checkpoint could not be saved ({cause(error)}); remove the"
                f" cause, then --existing resume continues from the newest complete"
                f" checkpoint (after update: {left})"
            ) from error

    def _there(self) -> bool:
        """Returns True if the folder of the checkpoints is the one there was before."""
        if self._folder is None:
            return True  # The first process looks.
        try:
            return os.path.samestat(self._stat, os.stat(self._out / CHECKPOINTS))
        except OSError:
            return False

    def _read_record(self, step: int) -> dict[str, Any]:
        what = ocp.args.Composite(run=ocp.args.JsonRestore())
        record: dict[str, Any] = self._manager.restore(step, args=what)["run"]
        digest = record.pop("digest", None) if isinstance(record, dict) else None
        if digest is None or digest != _digest_of_record(record):
            raise ValueError("its record differs from what was saved")
        return record

    def _compare(self, record: Mapping[str, Any]) -> None:
        """Compares what a checkpoint says of its run with this one."""
        if changes := list(_differences(record["config"], self._config)):
            raise ValueError(
                f"--existing resume: the checkpoint in --out has other settings:"
                f" {'; '.join(changes)}; give the same ones, or another --out"
            )
        self.settings = {
            key: value
            for key, value in self._config.items()
            if key in FACTS and FACTS[key].speed
        }
        self.changes = [
            f"{name}: {value} instead of {record['reported'][name]}"
            for name, value in self._reported.items()
            if value != record["reported"].get(name, value)
        ]

    def close(self) -> None:
        """Waits until all processes have written their checkpoints."""
        if self._closed:
            return
        self._closed = True
        with self._explained():
            self._manager.wait_until_finished()
        self._manager.close()
        if self._folder is not None:
            os.close(self._folder)

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
    folder, log = Path(out) / CHECKPOINTS, Path(out) / LOG
    return log.exists() or (folder.is_dir() and any(folder.iterdir()))


def remove(out: str | Path) -> None:
    """Deletes a run's checkpoints, also damaged ones, and log from the folder `out`."""
    for name in (CHECKPOINTS, _ASIDE):
        if (folder := Path(out) / name).is_dir():
            shutil.rmtree(folder)
    (Path(out) / LOG).unlink(missing_ok=True)


def _screen(out: Path) -> Iterator[str]:
    """Finds checkpoints that lack a file, or in which a file is not JSON.

    orbax would fail to start. If two files are missing, one of them the file that orbax
    writes last, the checkpoint is half deleted and is removed. The others are set
    aside. Yields a text about each.
    """
    for folder in (out / CHECKPOINTS).glob("*"):
        if not (re.fullmatch("0|[1-9][0-9]*", folder.name) and folder.is_dir()):
            continue
        lacks, problem = [], ""
        for name in _FILES:
            try:
                if not isinstance(json.loads((folder / name).read_bytes()), dict):
                    problem = f"{name} is not a JSON object"
            except (FileNotFoundError, NotADirectoryError):
                lacks.append(name)
            except ValueError as error:
                problem = f"{name}: {error}"
            except OSError as error:
                raise ValueError(f"--out: {error}; give read permission") from error
        if _LAST_WRITTEN in lacks and lacks[1:]:
            shutil.rmtree(folder)
            yield f"removed {folder}, a checkpoint that was half deleted"
        elif lacks or problem:
            problem = problem or f"{' and '.join(lacks)} missing"
            yield _set_aside(out, int(folder.name), problem)


def _set_aside(out: Path, step: int, why: str) -> str:
    """Moves a checkpoint out of those that count, and returns a text about it."""
    source, target = out / CHECKPOINTS / str(step), out / _ASIDE / str(step)
    while target.exists():
        target = target.with_name(f"{target.name}_again")
    try:
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
    except OSError as error:
        raise ValueError(
            f"--out: {source} is a damaged checkpoint ({why}), and cannot be moved to"
            f" {target}: {error.strerror}; move it away yourself"
        ) from error
    return f"the checkpoint of update {step} is damaged ({why}); it is now {target}"


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest_of_state(state: TrainState) -> str:
    """Returns a digest of the paths, shapes, dtypes and values of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        head = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}"
        digest.update(head.encode())
        # As bytes, because NumPy's buffers cannot hold bfloat16.
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
