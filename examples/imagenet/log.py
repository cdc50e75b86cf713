"""A run's log: a file of JSON lines, and TensorBoard event files with --tensorboard.

Every line is a record with a `kind`, such as "step" or "epoch". A run that resumes from
a checkpoint first removes the records of updates after the checkpoint.
"""

import itertools
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from .records import check_record

Record = dict[str, Any]
Show = Callable[[Record], None]
LOG = "log.jsonl"
# In these kinds `step` is the number of one update, from 0.
_COUNTED_FROM_0 = ("step", "layers", "not_finite")
_LAST = ("result", "stopped")  # kinds of the last record of a process


class Log:
    """A context manager that writes records to a file and passes each to `show`.

    With path None it does nothing, as in all processes but the first. `resume_at` is
    the number of updates after which to continue the log; None starts a new one.
    """

    def __init__(
        self, path: Path | None, show: Show, resume_at: int | None = None
    ) -> None:
        self._show, self._file = show, None
        if path is None:
            return
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if resume_at is not None:
                _cut(path, resume_at)
            self._file = path.open("w" if resume_at is None else "a")

    @property
    def empty(self) -> bool:
        """True if the log has a file and this file has no record yet."""
        return self._file is not None and self._file.tell() == 0

    def write(self, **record: Any) -> None:
        if self._file is None:
            return
        self._show(record)
        name = self._file.name
        with _explained(Path(name)):
            self._file.write(strict_json(record) + "\n")
            self._file.flush()
            there = same_file(self._file, Path(name))
        if not there:
            raise OSError(f"--out: {name} was deleted or replaced during the run")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # After a failed write, closing tries to write the rest and fails once more.
        with suppress(OSError) if kind else nullcontext():
            if self._file:
                self._file.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Adds the flag and the file to the message of an OSError."""
    try:
        yield
    except OSError as error:
        name, why = error.filename or path, error.strerror
        raise OSError(f"--out: cannot write to {name}: {why}") from error


def same_file(file: IO[str], path: Path) -> bool:
    """Returns True if an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def read_log(path: Path) -> list[Record]:
    """Returns the records of a log, none if there is no file.

    Ignores an incomplete last line, which a killed process may leave. Raises ValueError
    if another line is not a record as `records` describes them.
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    """Yields each line of a log, and the record that it holds."""
    if not path.exists():
        return
    *lines, _unfinished = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            record = _parse(line)
            check_record(record)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} {error}; delete the line, or put back a good"
                " copy of the log"
            ) from None
        yield line, record


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    # Bytes that are not UTF-8, numbers of thousands of digits, thousands of brackets.
    except (ValueError, RecursionError):
        start = line[:40].decode(errors="backslashreplace")
        raise ValueError(f"is not JSON: {start!r}") from None


def set_aside(path: Path) -> Path | None:
    """Renames a log so that a new one can begin, and returns the path it has then.

    If there is no log, or if it holds only settings and notes on the data, it changes
    nothing and returns None.
    """
    if all(record["kind"] in ("config", "data") for record in read_log(path)):
        return None
    for number in itertools.count(1):
        aside = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not aside.exists():
            break
    with _explained(path):
        return path.rename(aside)


def _cut(path: Path, updates: int) -> None:
    """Removes the records of later updates than the first `updates` from a log."""
    kept = [line for line, record in _lines(path) if _updates_done(record) <= updates]
    # Renamed into place, so that a kill leaves either the old log or the new one.
    beside = path.with_suffix(".cut")
    beside.write_bytes(b"".join(line + b"\n" for line in kept))
    beside.replace(path)


def _updates_done(record: Record) -> float:
    """Returns the number of updates after which the record was written."""
    if record["kind"] in ("config", "result"):
        return 0 if record["kind"] == "config" else math.inf
    step: int = record["step"]
    return step + 1 if record["kind"] in _COUNTED_FROM_0 else step


def strict_json(record: Record) -> str:
    """Returns the record as one line of JSON, with null for NaN and infinity."""
    return json.dumps(_strict(record), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    not_finite = isinstance(value, float) and not math.isfinite(value)
    return None if not_finite else value


def tensorboard(folder: Path) -> Show:
    """Returns a function that writes a record's numbers as TensorBoard scalars.

    The step of a scalar is the number of updates done. When a resumed run writes its
    first record, TensorBoard hides the values of later steps that the earlier process
    wrote. Raises OSError if the file cannot be written.
    """
    from flax.traverse_util import flatten_dict
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    # tensorboardX's SummaryWriter would write in a thread, whose errors it only prints.
    writer: Any = None

    def add(**event: Any) -> None:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    def add_record(record: Record) -> None:
        nonlocal writer
        kind, step = record["kind"], record.get("step")
        if step is not None:
            step += kind in _COUNTED_FROM_0
        if writer is None and step is None:
            return  # The settings have no scalars, and do not say where the run starts.
        if writer is None:
            start = step + (kind == "resume")
            # The step is in the name because two quick starts have the same second.
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            folder.mkdir(parents=True, exist_ok=True)
            writer = RecordWriter(str(folder / f"{name}.{start}"))
            add(file_version="brain.Event:2")
            add(step=start, session_log=SessionLog(status=SessionLog.START))
        if step is not None:
            numbers = record.get("layers", record)
            flat = flatten_dict(numbers, sep="/")  # type: ignore[no-untyped-call]
            for name, value in flat.items():
                if isinstance(value, int | float) and name != "step":
                    add(step=step, summary=scalar(f"{kind}/{name}", value))
        writer.flush()
        if kind in _LAST:
            writer.close()

    def write(record: Record) -> None:
        try:
            add_record(record)
        except OSError as error:
            with suppress(OSError):
                if writer:
                    writer.close()
            why = error.strerror
            raise OSError(f"--tensorboard: cannot write to {folder}: {why}") from error

    return write
