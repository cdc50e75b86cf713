"""Images per second by batch size and devices, as in Tables 8 to 11 of the LARS paper.

As there, training times are not measured but projected: epochs · images / speed.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from ..config import FACTS
from ..log import Record
from .page import ABSENT, Table, duration
from .runs import Run, group, with_differences

# Settings, besides batch size and devices, on which the speed depends.
_MATTERS = {key for key, facts in FACTS.items() if facts.speed} | {"platform"}

_SPEED = ("batch", "devices", "img/s", "/device", "waiting", "records",
          "epochs", "images", "projected")  # fmt: skip
_SPEEDUP = ("n, b, B", "B/n over b/n", "B/2n over b/2n", "b/2n over b/n",
            "B/2n over B/n")  # fmt: skip
_OF_SPEED = (
    "Medians over the records of speed in the logs, without the first of each process."
    " waiting: share of the time spent waiting for data. projected: training time,"
    " computed as epochs × images / speed and not measured."
)
_OF_RATIOS = (
    "Ratios of speeds: b/n is the speed with b images in a batch on n devices, and B/2n"
    " that with B images on 2n devices."
)


class Cell(NamedTuple):
    """The median training speed at one batch size on one number of devices."""

    group: str  # the other settings on which the speed depends, in words
    batch: int  # [images]
    devices: int
    speed: float  # [images/s]
    data_wait: float  # share of the time spent waiting for data, from 0 to 1
    records: int  # number of records over which the medians are taken
    warm: bool  # False if there are only first records, which may include compiling
    epochs: float | None  # of the projected time
    images: int | None  # number of training images
    seconds: float | None  # projected time of a whole run


class Ratios(NamedTuple):
    """Ratios of training speeds, as in Tables 9 and 11 of the LARS paper."""

    group: str  # the other settings on which the speed depends, in words
    small: int  # batch size b [images]
    large: int  # batch size B [images]
    devices: int  # n
    large_over_small: float  # on n devices
    large_over_small_on_twice: float  # on 2n devices
    twice_over_once_small: float  # 2n devices over n devices, at b
    twice_over_once_large: float  # 2n devices over n devices, at B


def cells(runs: Sequence[Run], epochs: float | None = None) -> list[Cell]:
    """Returns the median speed of like runs at each batch size and number of devices.

    Runs are alike if they agree in the other settings on which the speed depends. The
    projected times are for training of `epochs` epochs; None for the largest number of
    epochs for which one of the runs was started.
    """
    pools = defaultdict(list)
    runs = [part for run in runs for part in run.stretches()]
    for run, name in zip(runs, _groups(runs), strict=True):
        for warm, records in enumerate(run.speeds()):
            for record in records:
                key = name, run.settings["batch_size"], _devices(record)
                pools[key].append((run, bool(warm), record))
    rows = []
    for key, pool in sorted(pools.items()):
        warm = any(is_warm for _, is_warm, _ in pool)
        records = [record for _, is_warm, record in pool if is_warm == warm]
        own = [run.settings["epochs"] for run, _, _ in pool if "epochs" in run.settings]
        length = epochs or max(own, default=None)
        images = next((run.images for run, _, _ in pool if run.images), None)
        speed = median(record["images_per_second"] for record in records)
        wait = median(record["data_wait"] for record in records)
        time = length * images / speed if length and images else None
        rows.append(Cell(*key, speed, wait, len(records), warm, length, images, time))
    return rows


def _groups(runs: Sequence[Run]) -> list[str]:
    """Returns for each run the name of the group of runs with comparable speeds.

    It has the network, the optimizer, the platform and settings that affect the speed.
    """
    unknown = "platform not in the log"
    groups = [f"{group(run)}, {run.settings.get('platform', unknown)}" for run in runs]
    told = {"network", "algorithm", "platform"}
    own = [{k: v for k, v in run.settings.items() if k in _MATTERS} for run in runs]
    return with_differences(groups, own, told)


def _devices(record: Record) -> int:
    """Returns the number of devices that were in use when the record was made."""
    number: float = record["images_per_second"] / record["images_per_second_per_device"]
    return round(number)


def ratios(found: Sequence[Cell]) -> list[Ratios]:
    """Returns the ratios of speeds at any two batch sizes on n and 2n devices.

    Combinations for which one of the four speeds is missing are left out.
    """
    speed = {(cell.group, cell.batch, cell.devices): cell.speed for cell in found}
    rows = []
    for name in dict.fromkeys(cell.group for cell in found):
        batches = sorted({cell.batch for cell in found if cell.group == name})
        devices = sorted({cell.devices for cell in found if cell.group == name})
        for small, large in combinations(batches, 2):
            for n in devices:
                keys = [(name, b, d) for b in (small, large) for d in (n, 2 * n)]
                if not speed.keys() >= set(keys):
                    continue
                s1, s2, l1, l2 = (speed[key] for key in keys)
                four = l1 / s1, l2 / s2, s2 / s1, l2 / l1
                rows.append(Ratios(name, small, large, n, *four))
    return rows


def tables(found: Sequence[Cell]) -> list[Table]:
    """Returns tables of the speeds and their ratios, for each group of the cells."""
    parts: list[Table] = []
    for name in dict.fromkeys(cell.group for cell in found):
        own = [cell for cell in found if cell.group == name]
        note = _OF_SPEED
        if not all(cell.warm for cell in own):
            note += " *: only first records, which may include compiling."
        if "cpu" in name.split(", "):
            note += " On a CPU, devices are virtual and share its cores."
        parts.append(Table(f"Speed: {name}", _SPEED, list(map(_speed_row, own)), note))
        if speedups := list(map(_ratio_row, ratios(own))):
            parts.append(Table(f"Speedup: {name}", _SPEEDUP, speedups, _OF_RATIOS))
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
