"""Several processes that train together: how they connect, agree, and end.

When one dies, the others end within --heartbeat-timeout. A process that hangs ends
itself after --step-timeout.
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

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) if another start may succeed
_T = TypeVar("_T")
_MEETING = 300  # time within which all processes must start [s]


def join(cluster: Cluster) -> None:
    """Connects to the other processes, if there are any.

    It must be called before anything else makes JAX look for devices. Raises ValueError
    if it cannot connect.
    """
    by_flags = cluster.processes is not None
    if not by_flags and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return  # neither flags nor Slurm's srun started several processes
    if cluster.process == 0:
        where = f"{cluster.processes} processes at {cluster.coordinator}"
        print(f"waiting for {where}, at most {_MEETING} s", flush=True)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.processes,
            process_id=cluster.process,
            cluster_detection_method="deactivate" if by_flags else "slurm",
            heartbeat_timeout_seconds=cluster.heartbeat_timeout,
            initialization_timeout=_MEETING,
            shutdown_timeout_seconds=cluster.heartbeat_timeout,
        )
    except RuntimeError as error:  # for example if another program uses the port
        remedy = "give all processes the address of process 0, with a free port"
        raise ValueError(f"--coordinator: {error}; {remedy}") from error


def raise_everywhere(act: Callable[[], _T]) -> _T:
    """Calls `act` in each process; if it fails in one, all raise ValueError."""
    problems, result = [], None
    try:
        result = act()
    except (ValueError, OSError) as error:
        problems = [str(error)]
    if problems := gather(problems):
        raise ValueError(problems[0])
    return cast(_T, result)


def check_agreement(settings: Mapping[str, Any]) -> None:
    """Raises ValueError in all processes if the settings are not the same in all."""
    lines = "\n".join(f"{name} {value!r}" for name, value in settings.items())
    first, *others = gather([lines])
    for other in others:
        pairs = zip(first.split("\n"), other.split("\n"), strict=True)
        if differs := [f"{a} and {b}" for a, b in pairs if a != b]:
            raise ValueError(
                f"the processes differ: {'; '.join(differs)}; start all with the same"
                " flags, except --process, and the same data"
            )


def gather(texts: Sequence[str]) -> list[str]:
    """Returns the texts of all processes, in their order; each process must call it."""
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
    """A context manager that notes SIGTERM and SIGINT, to stop after the current step.

    A second signal has its usual effect at once. With several processes JAX, and not
    this class, handles SIGTERM.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def agreed(self, step: int) -> int | None:
        """Returns the signal for which all processes stop at this step, else None."""
        if jax.process_count() == 1:
            return self._received[0] if self._received else None
        # JAX catches SIGTERM itself, and finds a step that no process has passed yet.
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
        # Python only lets the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            for signum in signums:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()


class Watchdog:
    """A context manager that ends the process if `feed` is not called for some time.

    Otherwise it could wait forever for a process that died or a disk that does not
    answer, and keep its GPUs. `seconds` is that time; 0 switches the watchdog off.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._fed = seconds, threading.Event()
        self._closed = False
        if seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def feed(self) -> None:
        self._fed.set()

    def _watch(self) -> None:
        while self._fed.wait(self._seconds):
            if self._closed:
                return
            self._fed.clear()
        print(
            f"error: --step-timeout: no training step in {self._seconds:g} s; another"
            " process or the storage may hang; give more if a step can take that long."
            " This process was here:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(TRY_AGAIN)

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self.feed()
