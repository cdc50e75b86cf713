"""Several processes that train together: how they connect, agree, and end.

When one dies, the others end within --heartbeat-timeout. A process that hangs ends
itself after --step-timeout.
"""

import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from ..config import Cluster
from ..step.devices import CopiesDiffer
from ..terminal import printable

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) if another start may succeed
_T = TypeVar("_T")
_SLURM_PROCESSES = "SLURM_STEP_NUM_TASKS"
_MEETING = 300  # how long processes wait for each other at the start and the end [s]


class TryAgain(Exception):
    """Another start of the same command may succeed."""


# What `raise_everywhere` raises in all processes.
_SHARED = (ValueError, OSError, TryAgain)


class PeerLost(TryAgain):
    """Another process died, or the network between the processes failed."""

    def __init__(self, doing: str, error: Exception) -> None:
        text = " ".join(str(error).split())[:200]
        super().__init__(
            f"another process died or the network failed, while {doing} ({text}); start"
            " all processes again, with --existing resume if there are checkpoints"
        )


@contextmanager
def collective(doing: str) -> Iterator[None]:
    """Turns an error in what all processes do together into PeerLost.

    With one process, and for CopiesDiffer, the error passes unchanged.
    """
    try:
        yield
    # JAX, orbax and Gloo raise many kinds of errors here.
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, PeerLost | CopiesDiffer):
            raise
        raise PeerLost(doing, error) from error


def join(cluster: Cluster) -> None:
    """Connects to the other processes, if there are any.

    It must be called before anything else makes JAX look for devices. Raises ValueError
    if flags or Slurm's variables do not fit, and TryAgain if the port is in use or the
    coordinator does not answer within --heartbeat-timeout.
    """
    if cluster.coordinator is not None:
        here = _Place(cluster.coordinator, cluster.processes, cluster.process, None)
    elif (found := _slurm_place(os.environ)) is not None:
        here = found
    else:
        return  # neither flags nor Slurm's srun started several processes
    # JAX would end the process without a message of its own, after 300 seconds.
    if here.process == 0:
        _check_port(here.coordinator)
        where = f"{here.processes} processes at {here.coordinator}"
        print(printable(f"waiting for {where}, at most {_MEETING} s"), flush=True)
    else:
        _await_answer(here.coordinator, cluster.heartbeat_timeout)
    try:
        jax.distributed.initialize(
            coordinator_address=here.coordinator,
            num_processes=here.processes,
            process_id=here.process,
            local_device_ids=here.local_device,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=cluster.heartbeat_timeout,
            initialization_timeout=_MEETING,
            # At the end the others wait while process 0 draws the curves.
            shutdown_timeout_seconds=_MEETING,
        )
    except RuntimeError as error:
        remedy = "give all processes the address of process 0, with a free port"
        raise ValueError(f"--coordinator: {error}; {remedy}") from error


class _Place(NamedTuple):
    """Where a process stands among those that train together."""

    coordinator: str  # HOST:PORT
    processes: int | None
    process: int | None
    local_device: int | None  # the only device that it uses; None for all


def _slurm_place(environment: Mapping[str, str]) -> _Place | None:
    """Returns what Slurm's srun says of this process; None if it started only one.

    As in JAX's own detection of Slurm, the port follows from the number of the job, and
    each process has the device of its number on its node.
    """

    def number(name: str) -> int:
        text = environment.get(name, "")
        if not (text.isascii() and text.isdigit()):
            raise ValueError(
                f"the environment has {name}={text!r}, where Slurm's srun puts a"
                " number; start all processes with srun, or give --coordinator,"
                " --processes and --process"
            )
        return int(text)

    if _SLURM_PROCESSES not in environment or number(_SLURM_PROCESSES) <= 1:
        return None
    # A list such as node[01-03,7]-x,other5: the first is the coordinator's.
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    entry = re.match(r"(?:[^\[\],\s]|\[\w[^\]]*\])+", nodes)
    if entry is None or nodes[entry.end() : entry.end() + 1] not in ("", ","):
        raise ValueError(
            f"the environment has SLURM_STEP_NODELIST={nodes!r}, where Slurm's srun"
            " lists its nodes; start all processes with srun"
        )
    port = 61_440 + number("SLURM_JOB_ID") % 4_096
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", entry[0])
    return _Place(
        f"{first}:{port}",
        number(_SLURM_PROCESSES),
        number("SLURM_PROCID"),
        number("SLURM_LOCALID"),
    )


def _split(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), int(port)  # IPv6 addresses stand in brackets


def _check_port(coordinator: str) -> None:
    """Raises TryAgain if another program has the coordinator's port on this machine."""
    _, port = _split(coordinator)
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
        ).close()
    except OSError as error:
        raise TryAgain(
            f"--coordinator: cannot listen at {coordinator}: {error.strerror}; give all"
            " processes another port, or start again when it is free"
        ) from error


def _await_answer(coordinator: str, patience: int) -> None:
    """Raises TryAgain if nothing answers at the coordinator's address in that time."""
    end, address = time.monotonic() + patience, _split(coordinator)
    while True:
        try:
            socket.create_connection(address, timeout=max(1, patience / 4)).close()
        except (OSError, UnicodeError) as error:
            if time.monotonic() > end:
                why = getattr(error, "strerror", None) or error
                raise TryAgain(
                    f"--coordinator: nothing answers at {coordinator} for {patience} s"
                    f" ({why}); start process 0 there, or give a"
                    " larger --heartbeat-timeout if it starts later"
                ) from error
            time.sleep(0.5)
        else:
            return


def raise_everywhere(act: Callable[[], _T]) -> _T:
    """Calls `act` in each process; if it fails in one, all raise the same error.

    The error is a ValueError, an OSError or a TryAgain.
    """
    problems, result = [], None
    try:
        result = act()
    except PeerLost:
        raise  # the others notice it too
    except _SHARED as error:
        kind = next(i for i, kind in enumerate(_SHARED) if isinstance(error, kind))
        problems = [f"{kind} {error}"]
    if problems := gather(problems):
        number, _, text = problems[0].partition(" ")
        raise _SHARED[int(number)](text)
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
    with collective("processes exchanged messages"):
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
        with collective("processes agreed whether to stop"):
            stop = multihost_utils.reached_preemption_sync_point(step)
        return signal.SIGTERM if stop else None

    def _receive(self, signum: int, frame: object) -> None:
        if self._received:
            # Not before: Python reports a signal as lost if it finds the default
            # handler of a signal that came while this one was still in place.
            signal.signal(signum, self._before[signum])
            signal.raise_signal(signum)
            return
        self._received.append(signum)
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
