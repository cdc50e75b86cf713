"""Several processes that train together: how they find each other, agree and end.

One that dies ends the others within --heartbeat-timeout; one that is stuck ends itself.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..config import Cluster

TRY_AGAIN = 75  # exit status where another start may go on: EX_TEMPFAIL
_T = TypeVar("_T")
_MEETING = 300  # for all to start [s]


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


def raise_everywhere(act: Callable[[], _T]) -> _T:
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


class StopSignals:
    """SIGTERM and SIGINT, noted, and agreed on by all processes; use as a context.

    A second signal acts at once, but for SIGTERM of several processes, which is JAX's.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def agreed(self, step: int) -> int | None:
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

    def __enter__(self) -> "StopSignals":
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
