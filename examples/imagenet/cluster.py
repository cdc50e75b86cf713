"""Several processes that train together: how they find each other, agree and end.

One that dies ends the others within --heartbeat-timeout; one that is stuck ends itself.
"""

import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from .flags import check, flag

TRY_AGAIN = 75  # exit status where another start may go on: EX_TEMPFAIL
_T = TypeVar("_T")
_MEETING = 300  # for all to start [s]
_PATIENCE = 600  # for a step, of several processes [s]


@dataclass(frozen=True)
class Cluster:
    """Several processes, of one machine or many, that train together.

    Each is started with the same flags but --process. Under Slurm's srun none of these
    is needed. --out must be a folder that all of them share.
    """

    #: Where process 0 listens and all others find it.
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    #: How many there are.
    processes: int | None = None
    #: The number of this one, from 0.
    process: int | None = None
    #: A process that died is noticed, and ends the others, within that time: with
    #: status 75 where a step fails first, else by JAX, which aborts [s].
    heartbeat_timeout: int = 60
    #: A process that while training made no step for that long ends itself with the
    #: same status; 0 for never. Default: 600 of several processes, 0 of one [s].
    step_timeout: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if given.count(None) not in (0, 3):
            missing = [
                flag(name)
                for name in ("coordinator", "processes", "process")
                if getattr(self, name) is None
            ]
            raise ValueError(f"{', '.join(missing)}: missing; give all three, or none")
        if self.coordinator is not None:
            ok = re.fullmatch(r".+:\d+", self.coordinator) is not None
            check(ok, "coordinator", self.coordinator, "give HOST:PORT")
        if self.processes is not None and self.process is not None:
            check(self.processes > 0, "processes", self.processes, "give 1 or more")
            ok = 0 <= self.process < self.processes
            remedy = f"give 0 to {self.processes - 1}, as --processes is"
            check(ok, "process", self.process, f"{remedy} {self.processes}")
        check(
            self.heartbeat_timeout >= 5,
            *("heartbeat_timeout", self.heartbeat_timeout, "give 5 or more"),
        )
        check(
            self.step_timeout is None or self.step_timeout >= 0,
            *("step_timeout", self.step_timeout, "give 0 or more"),
        )

    @property
    def patience(self) -> int:
        """Seconds without a step after which a process ends itself; 0 for any."""
        if self.step_timeout is None:
            return _PATIENCE if jax.process_count() > 1 else 0
        return self.step_timeout


def join(cluster: Cluster) -> None:
    """Meets the other processes, if there are any; call before JAX counts devices."""
    if cluster.processes is not None:
        who: dict[str, Any] = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.processes,
            "process_id": cluster.process,
            "cluster_detection_method": "deactivate",
        }
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun
        who = {"cluster_detection_method": "slurm"}
    else:
        return
    if cluster.process == 0:
        where = f"{cluster.processes} processes at {cluster.coordinator}"
        print(f"waiting for {where}, at most {_MEETING} s", flush=True)
    try:
        jax.distributed.initialize(
            **who,
            heartbeat_timeout_seconds=cluster.heartbeat_timeout,
            initialization_timeout=_MEETING,
            shutdown_timeout_seconds=cluster.heartbeat_timeout,
        )
    except RuntimeError as error:  # as where another program has the port
        raise ValueError(f"--coordinator: {error}") from error


def together(act: Callable[[], _T]) -> _T:
    """What `act` returns; ValueError in every process if it cannot do it in any."""
    problems: list[str] = []
    result = None
    try:
        result = act()
    except (ValueError, OSError) as error:
        problems.append(str(error))
    if problems := gather(problems):
        raise ValueError(problems[0])
    return cast(_T, result)


def check_agreement(settings: Mapping[str, Any]) -> None:
    """ValueError, in every process, naming what is not the same in all of them."""
    lines = "\n".join(f"{name} {value!r}" for name, value in settings.items())
    first, *others = gather([lines])
    for other in others:
        pairs = zip(first.split("\n"), other.split("\n"), strict=True)
        if differs := [f"{a} and {b}" for a, b in pairs if a != b]:
            raise ValueError(
                f"the processes differ: {'; '.join(differs)}; give all the same flags"
                " and data"
            )


def gather(texts: Sequence[str]) -> list[str]:
    """Those of all processes, in their order; every process must call it."""
    if jax.process_count() == 1:
        return list(texts)
    raw = np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([raw.size])).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [
        text
        for row, size in zip(rows, sizes, strict=True)
        if size
        for text in row[:size].tobytes().decode(errors="surrogateescape").split("\0")
    ]


class Stops:
    """SIGTERM and SIGINT, noted, and agreed on by all processes; use as a context.

    A second signal acts at once, but for SIGTERM of several processes, which is JAX's.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def asked(self, step: int) -> int | None:
        """The signal after which all processes are to stop at this step, if any."""
        if jax.process_count() == 1:
            return self._received[0] if self._received else None
        # JAX itself catches SIGTERM here, and finds a step that none has passed.
        stop = multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM if stop else None

    def _receive(self, signum: int, frame: object) -> None:
        self._received.append(signum)
        self._restore()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "Stops":
        alone = jax.process_count() == 1
        signums = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        # Python lets the main thread alone handle signals.
        if threading.current_thread() is threading.main_thread():
            for signum in signums:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()


class Watchdog:
    """Ends this process, saying so, if `feed` is not called for so many seconds.

    Then a collective waits for a process that will never come, or a disk that will
    never answer; nothing but the end of the process gives its GPUs back.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._fed = seconds, threading.Event()
        self._closed = False
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def feed(self) -> None:
        self._fed.set()

    def close(self) -> None:
        self._closed = True
        self.feed()

    def _watch(self) -> None:
        while self._fed.wait(self._seconds):
            if self._closed:
                return
            self._fed.clear()
        print(
            f"error: --step-timeout: no step in {self._seconds:g} s; give more if one"
            " takes that long, else another process is stuck or gone, or the data does"
            " not come. Where this one is:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(TRY_AGAIN)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
