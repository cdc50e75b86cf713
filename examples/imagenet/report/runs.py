"""What a run's log says of the run: settings, status, images, norms, and its label.

Refuses what is no log of a run, with a remedy. What a log does not hold is None.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from ..config import FACTS
from ..flags import flag
from ..log import LOG, Record, read_log

_IN_LABELS = {"network", "algorithm", "batch_size"}  # in words of their own
_UNTOLD = {key for key, facts in FACTS.items() if not facts.result} | _IN_LABELS


@dataclass(frozen=True)
class Run:
    """A log that has been read, and a name for its files."""

    name: str
    path: Path
    log: list[Record]

    @property
    def unreadable(self) -> set[str]:
        """Paths of images; one can be met in every epoch."""
        return {record["path"] for record in self.of("broken")}

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.log if record["kind"] == kind]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """By name, without sections; `devices` as many as there were, of all processes.

        Those that an earlier version did not log are missing.
        """
        config = self.log[0]
        sections = ("data", "model", "optimizer", "batching", "run")
        found = {k: v for part in sections for k, v in config.get(part, {}).items()}
        found.pop("devices", None)  # as asked for
        if plan := config.get("plan"):
            found["devices"] = plan["processes"] * plan["devices"]
        if "platform" in config:
            found["platform"] = config["platform"]
        return found

    @property
    def status(self) -> str:
        if self.of("not_finite"):
            return "diverged"
        return "finished" if self.of("result") else "unfinished"

    @property
    def updates(self) -> int:
        """As far as the log goes."""
        if results := self.of("result"):
            return int(results[-1]["updates"])
        return max((record["step"] + 1 for record in self.of("step")), default=0)

    @cached_property
    def images(self) -> int | None:
        """The training images: as logged, else from an update's epoch = step·B/N."""
        if found := self.log[0].get("images"):
            return int(found)
        last = max(self.of("step"), key=lambda record: record["step"], default=None)
        if not last or not last["epoch"]:
            return None
        images: float = last["step"] * self.settings["batch_size"] / last["epoch"]
        return round(images)

    @property
    def splits(self) -> list[str]:
        """What was evaluated on; more than one where a log mixes them."""
        return list(dict.fromkeys(record["split"] for record in self.of("epoch")))

    def norms(self) -> tuple[int, dict[str, Any]] | None:
        """The first step with a record of its layers, and each leaf's norms."""
        tables = self.of("layers")
        return (tables[0]["step"], tables[0]["layers"]) if tables else None

    def speeds(self) -> tuple[list[Record], list[Record]]:
        """Each process's first record of speed, which may hold warm-up; the others."""
        first: list[Record] = []
        others: list[Record] = []
        fresh = True
        for record in self.log:
            if record["kind"] in ("config", "resume"):
                fresh = True
            elif record["kind"] == "speed":
                (first if fresh else others).append(record)
                fresh = False
        return first, others


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Each folder's or file's run, once; ValueError says what is wrong with one."""
    runs: dict[Path, Run] = {}
    for argument in arguments:
        path = Path(argument).resolve()
        if path.is_dir():
            path /= LOG
        try:
            log = _read(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"RUN: {argument!r}: {reason}") from None
        stem = path.parent.name + ("" if path.name == LOG else f"-{path.stem}")
        stem = re.sub(r"[^\w.-]+", "-", stem)
        taken = {run.name for run in runs.values()}
        tries = chain([stem], (f"{stem}-{i}" for i in count(2)))
        name = next(name for name in tries if name not in taken)
        runs.setdefault(path, Run(name, path, log))
    return list(runs.values())


def _read(path: Path) -> list[Record]:
    if not path.is_file():
        raise ValueError("no log there; give a run's folder or its .jsonl file")
    try:
        log = read_log(path)
    except UnicodeDecodeError:
        raise ValueError("not a text; give a run's folder or its .jsonl file") from None
    if not log:
        raise ValueError("the log is empty; wait for its first line, or leave it out")
    if not all(isinstance(record, dict) and "kind" in record for record in log):
        raise ValueError("not a run's log; give a run's folder or its log.jsonl")
    if not Run("", path, log).settings.keys() >= {"network", "algorithm", "batch_size"}:
        raise ValueError(
            "no config record with network, optimizer and batch at its start; give the"
            " whole log, as the trainer wrote it"
        )
    return log


def labels(runs: Sequence[Run]) -> list[str]:
    """Network, optimizer, batch, and what else tells a run from those alike in these.

    Runs that differ in their seed alone share a label.
    """
    found = [_base(run.settings) for run in runs]
    extras = differences([run.settings for run in runs], found, _UNTOLD)
    marks = ["" if run.status == "finished" else run.status for run in runs]
    return [
        ", ".join(filter(None, (base, *extra, mark)))
        for base, extra, mark in zip(found, extras, marks, strict=True)
    ]


def _base(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['network']}, {settings['algorithm'].upper()},"
        f" batch {settings['batch_size']:,}"
    )


def differences(
    settings: Sequence[Mapping[str, Any]], groups: Sequence[str], untold: Iterable[str]
) -> list[list[str]]:
    """Of each run, in words, the settings that are not the same in all its group.

    What a log does not hold differs from nothing.
    """

    def told(own: Mapping[str, Any], group: str) -> list[str]:
        alike = [s for s, g in zip(settings, groups, strict=True) if g == group]
        return [
            f"{flag(key)[2:]} {f'{value:g}' if isinstance(value, float) else value}"
            for key, value in own.items()
            if key not in untold and any(s.get(key, value) != value for s in alike)
        ]

    return [told(own, group) for own, group in zip(settings, groups, strict=True)]
