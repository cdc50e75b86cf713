"""A run's log: JSON lines always, TensorBoard's event files where asked for.

Every record has a `kind`; `report` reads them. A run that goes on from a checkpoint
goes on in the same log: what an earlier process logged beyond it is dropped.
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

Record = dict[str, Any]
LOG = "log.jsonl"
# Records of one update, not of what is done.
_COUNTED_FROM_0 = ("step", "layers", "not_finite")
_LAST = ("result", "stopped")  # of a process


class Log:
    """Appends records to a file and hands each to `show`; use it as a context.

    `path`: None drops the records, as all processes but the first do. `resume_at`: the
    number of updates after which to go on; None starts a new log.
    """

    def __init__(
        self,
        path: Path | None,
        show: Callable[[Record], None],
        resume_at: int | None = None,
    ) -> None:
        self._show, self._file = show, None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is None:
            self._file = path.open("w")
        else:
            _cut(path, resume_at)
            self._file = path.open("a")

    def write(self, **record: Any) -> None:
        if self._file is None:
            return
        self._show(record)
        try:
            self._file.write(strict_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"--out: {self._file.name}: {error.strerror}") from error

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # What a full disk did not take is still there to be written, and fails again.
        with suppress(OSError) if kind else nullcontext():
            if self._file:
                self._file.close()


def read_log(path: Path) -> list[Record]:
    """The records; a last line that a killed process left unfinished is none.

    Raises ValueError on any other line that is no JSON.
    """
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text().split("\n")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        record: Record = json.loads(line)
    except json.JSONDecodeError:
        raise ValueError(
            f"{path}: line {number} is no JSON: {line[:40]!r}; take it out"
        ) from None
    return record


def _cut(path: Path, updates: int) -> None:
    kept = [record for record in read_log(path) if _updates_done(record) <= updates]
    # Beside the log and then in its place, so that no kill leaves half of it.
    beside = path.with_suffix(".cut")
    beside.write_text("".join(json.dumps(record) + "\n" for record in kept))
    beside.replace(path)


def _updates_done(record: Record) -> float:
    if record["kind"] == "result":
        return math.inf
    step: int = record.get("step", 0)
    return step + 1 if record["kind"] in _COUNTED_FROM_0 else step


def strict_json(record: Record) -> str:
    """On one line. JSON has no NaN: what is not finite becomes null."""
    return json.dumps(_strict(record), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    lost = isinstance(value, float) and not math.isfinite(value)
    return None if lost else value


def tensorboard(folder: Path) -> Callable[[Record], None]:
    """A function that writes each record's numbers as TensorBoard scalars.

    TensorBoard drops what an earlier process wrote beyond the first record's step.
    """
    from tensorboardX import SummaryWriter

    writer = None

    def write(record: Record) -> None:
        nonlocal writer
        kind, step = record["kind"], record.get("step")
        if writer is None:
            start = step or 0
            # Of its own, a file's name tells no two starts in one second apart.
            writer = SummaryWriter(
                str(folder), purge_step=start, filename_suffix=f".{start}"
            )
        if step is not None:
            for name, value in _scalars(record.get("layers", record)):
                writer.add_scalar(f"{kind}/{name}", value, step)
        if kind in _LAST:
            # A flush would leave behind what waits in the writer's queue.
            writer.close()

    return write


def _scalars(record: Record, prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for key, value in record.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            found.append((prefix + key, float(value)))
    return found
