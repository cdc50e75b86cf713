"""Checkpoints of a run with orbax: the newest few and the best, written meanwhile.

A checkpoint holds the whole `TrainState` (its step is the position in the data) and a
record of the run. Refuses to go on with one of another network, recipe, data or slot.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from .config import Config, flag
from .log import LOG
from .provenance import versions
from .train import TrainState

_FOLDER = "checkpoints"
_ACCURACY = "accuracy"
# What may differ between the run that saved a checkpoint and the one that goes on.
_FREE = {
    *("dry_run", "eval_batch_size", "log_every", "layers_every", "tensorboard"),
    *("checkpoints", "checkpoint_every", "existing", "out", "devices", "engine"),
    # Together they make a slot, which is compared.
    *("accumulate", "solvers_per_device"),
}
# What to call a field that is not a flag's name.
_NAMES = {
    "source": "--data",
    "name": "--optimizer",
    "images": "the number of training images",
    "slot": "a slot (--devices × --solvers-per-device × --accumulate)",
}


class Checkpoints:
    """The checkpoints in a run's folder; close it, or use it as a context.

    `images`: how many the run trains on; `slot`: how many BatchNorm takes together.
    ValueError if the newest there is of another run; it names every difference.
    """

    def __init__(self, out: str | Path, config: Config, images: int, slot: int) -> None:
        self._config = asdict(config) | {"images": images, "slot": slot}
        newest, best = (
            LatestN(config.run.checkpoints),
            BestN(get_metric_fn=_accuracy, n=1),
        )
        self._manager = ocp.CheckpointManager(
            (Path(out) / _FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([newest, best]),
                # Without it orbax forgets the metrics when the process ends.
                best_fn=_accuracy,
                # What a killed run was writing.
                cleanup_tmp_directories=True,
            ),
        )
        self._record = self._read_record()

    def save(
        self, state: TrainState, step: int, seconds: float, accuracy: float | None
    ) -> None:
        """Copies the state to host memory and goes on; a thread writes it to disk.

        Waits for the checkpoint before this one. `accuracy` is None where the state has
        not been evaluated.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                run=ocp.args.JsonSave(
                    {"config": self._config, "seconds": seconds, "versions": versions()}
                ),
            ),
            metrics={_ACCURACY: accuracy},
            force=True,
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state, laid out as `like`, and its record; None if none."""
        if self._record is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        saved = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
        )
        return saved["state"], self._record

    @property
    def any(self) -> bool:
        """Whether there was one to go on from."""
        return self._record is not None

    def _read_record(self) -> dict[str, Any] | None:
        """Of the newest checkpoint; ValueError names every setting that differs."""
        step = self._manager.latest_step()
        if step is None:
            return None
        what = ocp.args.Composite(run=ocp.args.JsonRestore())
        record: dict[str, Any] = self._manager.restore(step, args=what)["run"]
        if changes := list(_differences(record["config"], self._config)):
            raise ValueError(
                f"--existing resume: the checkpoint of step {step} is of another run:"
                f" {'; '.join(changes)}. Give the same flags, or another --out"
            )
        return record

    def close(self) -> None:
        """Waits for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def exist(out: str | Path) -> bool:
    """Whether an earlier run left checkpoints there, whole ones or not, or a log."""
    folder, log = Path(out) / _FOLDER, Path(out) / LOG
    return log.exists() or (folder.is_dir() and any(folder.iterdir()))


def remove(out: str | Path) -> None:
    """Deletes checkpoints and log."""
    shutil.rmtree(Path(out) / _FOLDER, ignore_errors=True)
    (Path(out) / LOG).unlink(missing_ok=True)


def _accuracy(metrics: dict[str, float | None]) -> float:
    found = metrics[_ACCURACY]
    return -math.inf if found is None else found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key, value in new.items():
        if isinstance(value, dict):
            yield from _differences(old.get(key, {}), value)
        elif key not in _FREE and old.get(key) != _plain(value):
            name = _NAMES.get(key, flag(key))
            yield f"{name} was {old.get(key)!r}, now {value!r}"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
