"""What the log of a training run says of it: settings, status, images, norms, speeds.

Raises ValueError if a file is not the log of a run. A value that the log does not hold
is None or missing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from ..config import FACTS
from ..log import LOG, Record, read_log

_IN_GROUP = {"network", "algorithm", "batch_size"}  # every label begins with these
# Settings that a label does not list, even if they differ.
_UNLISTED = {key for key, facts in FACTS.items() if not facts.result} | _IN_GROUP
_LONGEST = 60  # most characters of a run's name, from which files are named
_MOST = 2**53  # most images; what follows from odd numbers may be beyond


# The groups of settings in the first record of a log.
_SECTIONS = ("data", "model", "optimizer", "batching", "run")


@dataclass(frozen=True)
class Run:
    """A training run whose log has been read; reports and pictures use its name."""

    name: str
    path: Path
    log: list[Record]

    @property
    def unreadable(self) -> set[str]:
        """Paths of the images that could not be read, each once over all epochs."""
        return {record["path"] for record in self.of("broken")}

    def stretches(self) -> list["Run"]:
        """Returns a run for each part of the log with the same speed settings.

        Speed settings are the flags that affect the speed, which a resumed run may
        change. A new part begins where it has changed one of them.
        """
        config = self.log[0]
        logs = [[config]]
        for record in self.log[1:]:
            if record["kind"] == "resume":
                old, new = config, record.get("settings") or {}
                config = old | {
                    part: {k: new.get(k, v) for k, v in old[part].items()}
                    for part in _SECTIONS
                    if part in old
                }
                if config != old:
                    logs.append([config])
            logs[-1].append(record)
        return [Run(self.name, self.path, log) for log in logs]

    def of(self, kind: str) -> list[Record]:
        """Returns the log's records of this kind."""
        return [record for record in self.log if record["kind"] == kind]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the run by name, as far as its log holds them.

        `devices` is the number of devices that all processes had together.
        """
        config = self.log[0]
        found = {k: v for part in _SECTIONS for k, v in config.get(part, {}).items()}
        found.pop("devices", None)  # the number asked for, of each process
        if plan := config.get("plan"):
            found["devices"] = plan["processes"] * plan["devices"]
        if "platform" in config:
            found["platform"] = config["platform"]
        return found

    @property
    def status(self) -> str:
        """Whether the run is "finished", "diverged" or "unfinished"."""
        if self.of("not_finite"):
            return "diverged"
        return "finished" if self.of("result") else "unfinished"

    @property
    def updates(self) -> int:
        """Number of parameter updates in the log."""
        if results := self.of("result"):
            return int(results[-1]["updates"])
        return max((record["step"] + 1 for record in self.of("step")), default=0)

    @cached_property
    def images(self) -> int | None:
        """Number of training images; None if the log does not tell it.

        Old logs do not state it. It is then step · batch size / epoch of the last step.
        """
        if found := self.log[0].get("images"):
            return int(found)
        last = max(self.of("step"), key=lambda record: record["step"], default=None)
        if not last or not last["epoch"]:
            return None
        images: float = last["step"] * self.settings["batch_size"] / last["epoch"]
        return round(images) if images <= _MOST else None

    @property
    def splits(self) -> list[str]:
        """Names of the splits on which the run was evaluated, usually just one."""
        return list(dict.fromkeys(record["split"] for record in self.of("epoch")))

    def norms(self) -> tuple[int, dict[str, Any]] | None:
        """Returns the first step with logged layer norms, and these norms by layer.

        Returns None if the log has no layer norms.
        """
        tables = self.of("layers")
        return (tables[0]["step"], tables[0]["layers"]) if tables else None

    def noise_scales(self) -> list[tuple[float, float]]:
        """Returns the epoch and the gradient noise scale of each update that has one.

        It is negative where the estimate of the signal is. Updates at which it is not
        finite are left out.
        """
        found = [(r["epoch"], r.get("noise_scale")) for r in self.of("step")]
        return [(epoch, scale) for epoch, scale in found if scale is not None]

    def speeds(self) -> tuple[list[Record], list[Record]]:
        """Returns the first speed record of each process, and all other speed records.

        The first may include the time for compiling.
        """
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
    """Returns the runs whose folders or log files are given, each once.

    Raises ValueError, which names the argument, if one is not the log of a run.
    """
    runs: dict[Path, Run] = {}
    for argument in arguments:
        try:
            path = Path(argument).resolve()
            if path.is_dir():
                path /= LOG
            log = _read(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"RUN: {argument!r}: {reason}") from None
        stem = path.parent.name + ("" if path.name == LOG else f"-{path.stem}")
        stem = re.sub(r"[^\w.-]+", "-", stem)[:_LONGEST]
        taken = {run.name for run in runs.values()}
        tries = chain([stem], (f"{stem}-{i}" for i in count(2)))
        name = next(name for name in tries if name not in taken)
        runs.setdefault(path, Run(name, path, log))
    return list(runs.values())


def _read(path: Path) -> list[Record]:
    remedy = "give the folder of a run or its .jsonl file"
    if not path.is_file():
        raise ValueError(f"there is no log there; {remedy}")
    log = read_log(path)
    if not log:
        raise ValueError(
            "the log is empty; wait until it has a first line, or leave this run out"
        )
    if log[0]["kind"] != "config":
        raise ValueError(
            "the log does not begin with the record of the run's settings; give the"
            " whole log, as the trainer wrote it"
        )
    return log


def labels(runs: Sequence[Run]) -> list[str]:
    """Returns a label for each run: network, optimizer, batch size, and differences.

    The differences are the settings that distinguish runs of the same network,
    optimizer and batch size. Runs that differ only in their seed have the same label.
    """
    groups = [f"{group(run)}, batch {run.settings['batch_size']:,}" for run in runs]
    found = with_differences(groups, [run.settings for run in runs], _UNLISTED)
    return [
        label if run.status == "finished" else f"{label}, {run.status}"
        for run, label in zip(runs, found, strict=True)
    ]


def group(run: Run) -> str:
    """Returns the names of a run's network and optimizer, as a text for its label."""
    return f"{run.settings['network']}, {run.settings['algorithm'].upper()}"


def with_differences(
    groups: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    unlisted: Iterable[str],
) -> list[str]:
    """Returns each run's group name and the settings that differ within its group.

    The settings named in `unlisted` are left out. A setting that one log lacks is taken
    to be the same as in the others.
    """

    def label(group: str, own: Mapping[str, Any]) -> str:
        alike = [s for s, g in zip(settings, groups, strict=True) if g == group]
        listed = [
            f"{FACTS[key].name if key in FACTS else key} "
            f"{f'{value:g}' if isinstance(value, float) else value}"
            for key, value in own.items()
            if key not in unlisted and any(s.get(key, value) != value for s in alike)
        ]
        return ", ".join([group, *listed])

    return list(map(label, groups, settings))
