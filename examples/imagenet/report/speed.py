"""Images per second by total batch and devices, as in the paper's Tables 8 to 11.

As there, a time is no measurement: it is projected, epochs · images / speed.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from ..config import FACTS
from ..log import Record
from .page import ABSENT, Table, duration
from .runs import Run, differences

# Settings that speed depends on, beside batch and devices.
_MATTERS = {key for key, facts in FACTS.items() if facts.speed} | {"platform"}

_SPEED = ("batch", "devices", "img/s", "/device", "waiting", "records",
          "epochs", "images", "projected")  # fmt: skip
_SPEEDUP = (
    "n, b, B",
    "B/n over b/n",
    "B/2n over b/2n",
    "b/2n over b/n",
    "B/2n over B/n",
)
_OF_SPEED = (
    "Medians over the records of speed, without the first of each process; waiting: for"
    " data. Projected time = epochs × training images / speed: no run took it."
)
_OF_RATIOS = "Ratios of speeds on n and 2n devices, with b and B images in a batch."


class Cell(NamedTuple):
    """Medians at one total batch on one number of devices."""

    group: str  # what else speed depends on
    batch: int  # [images]
    devices: int
    speed: float  # [images/s]
    data_wait: float  # share of the time
    records: int
    warm: bool  # False if there is none but the first records of processes
    epochs: float | None
    images: int | None
    seconds: float | None  # projected


class Ratios(NamedTuple):
    """Of speeds, as in Tables 9 and 11."""

    group: str
    small: int  # [images]
    large: int  # [images]
    devices: int
    large_over_small: float
    large_over_small_on_twice: float
    twice_over_once_small: float
    twice_over_once_large: float


def cells(runs: Sequence[Run], epochs: float | None = None) -> list[Cell]:
    """All records of the same group, batch and devices together.

    `epochs`: of the projected time; None for the most that a run of the cell has.
    """
    pools = defaultdict(list)
    for run, group in zip(runs, _groups(runs), strict=True):
        for warm, records in enumerate(run.speeds()):
            for record in records:
                key = group, run.settings["batch_size"], _devices(record)
                pools[key].append((run, bool(warm), record))
    found = []
    for key, pool in sorted(pools.items()):
        warm = any(is_warm for _, is_warm, _ in pool)
        records = [record for _, is_warm, record in pool if is_warm == warm]
        own = [run.settings["epochs"] for run, _, _ in pool if "epochs" in run.settings]
        all_epochs = epochs or max(own, default=None)
        images = next((run.images for run, _, _ in pool if run.images), None)
        speed = median(record["images_per_second"] for record in records)
        wait = median(record["data_wait"] for record in records)
        seconds = all_epochs * images / speed if all_epochs and images else None
        found.append(
            Cell(*key, speed, wait, len(records), warm, all_epochs, images, seconds)
        )
    return found


def _groups(runs: Sequence[Run]) -> list[str]:
    settings = [
        {key: value for key, value in run.settings.items() if key in _MATTERS}
        for run in runs
    ]
    found = [
        f"{s['network']}, {s['algorithm'].upper()},"
        f" {s.get('platform', 'platform not in the log')}"
        for s in settings
    ]
    extras = differences(settings, found, {"network", "algorithm", "platform"})
    return [
        ", ".join((group, *extra)) for group, extra in zip(found, extras, strict=True)
    ]


def _devices(record: Record) -> int:
    """As many as there were: a run may go on with others than it began with."""
    number: float = record["images_per_second"] / record["images_per_second_per_device"]
    return round(number)


def ratios(found: Sequence[Cell]) -> list[Ratios]:
    """Of each two batches on n and 2n devices, where all four cells are there."""
    speed = {(cell.group, cell.batch, cell.devices): cell.speed for cell in found}
    rows = []
    for group in dict.fromkeys(cell.group for cell in found):
        batches = sorted({cell.batch for cell in found if cell.group == group})
        devices = sorted({cell.devices for cell in found if cell.group == group})
        for small, large in combinations(batches, 2):
            for n in devices:
                keys = [(group, b, d) for b in (small, large) for d in (n, 2 * n)]
                if not speed.keys() >= set(keys):
                    continue
                s1, s2, l1, l2 = (speed[key] for key in keys)
                four = l1 / s1, l2 / s2, s2 / s1, l2 / l1
                rows.append(Ratios(group, small, large, n, *four))
    return rows


def tables(found: Sequence[Cell]) -> list[Table]:
    """A table for each network, optimizer and machine, and the ratios of its cells."""
    parts: list[Table] = []
    for group in dict.fromkeys(cell.group for cell in found):
        own = [cell for cell in found if cell.group == group]
        note = _OF_SPEED
        if not all(cell.warm for cell in own):
            note += " *: nothing but first records, which may hold warm-up."
        if "cpu" in group.split(", "):
            note += " On a CPU, devices are virtual and share its cores."
        rows = [_speed_row(cell) for cell in own]
        parts.append(Table(f"Speed: {group}", _SPEED, rows, note))
        speedups = [_ratio_row(row) for row in ratios(own)]
        if speedups:
            parts.append(Table(f"Speedup: {group}", _SPEEDUP, speedups, _OF_RATIOS))
    return parts


def _speed_row(cell: Cell) -> tuple[str, ...]:
    return (
        f"{cell.batch:,}",
        f"{cell.devices}",
        f"{cell.speed:,.0f}",
        f"{cell.speed / cell.devices:,.0f}",
        f"{cell.data_wait:.0%}",
        f"{cell.records}{'' if cell.warm else '*'}",
        f"{cell.epochs:g}" if cell.epochs else ABSENT,
        f"{cell.images:,}" if cell.images else ABSENT,
        ABSENT if cell.seconds is None else duration(cell.seconds),
    )


def _ratio_row(row: Ratios) -> tuple[str, ...]:
    return (
        f"{row.devices}, {row.small:,}, {row.large:,}",
        *(f"{ratio:.2f}" for ratio in row[4:]),
    )
