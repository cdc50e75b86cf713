"""Times steps in another Python, the peer, which has packages that this one lacks.

The two processes exchange lines of JSON. The peer is sent its task and answers with the
names of its steps and its versions. From then on it is sent the name of a step, takes
that step and answers with the seconds it took, or with NaN if memory ran out. The peer
imports this module too, so it needs the standard library alone.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.speed.timer import Step

# The steps of a peer, and the versions of its packages.
Offer = tuple[dict[str, Step], dict[str, Any] | None]


@contextmanager
def start_peer(python: str, module: str, task: Any) -> Iterator[Offer]:
    """Runs a module of benchmarks/speed with the Python `python`, and sends it `task`.

    Yields the module's steps by name, and the versions of its packages. Calling a step
    takes it in the other process and returns its seconds. If `python` is empty, yields
    no steps and None.
    """
    if not python:
        yield {}, None
        return
    command = [python, "-m", f"benchmarks.speed.{module}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def ask(request: Any) -> Any:
            print(json.dumps(request), file=process.stdin, flush=True)
            assert process.stdout
            if answer := process.stdout.readline():
                return json.loads(answer)
            raise SystemExit(f"{' '.join(command)} failed: status {process.wait()}")

        about = ask(task)
        yield {name: partial(ask, name) for name in about["names"]}, about["versions"]


def serve(offer: Callable[[Any], Offer]) -> None:
    """Takes the steps that `start_peer` in the other process asks for.

    `offer` makes the steps, and the versions of the packages, from the task that the
    other process sends first. Returns when that process closes the pipe.
    """
    steps, versions = offer(json.loads(sys.stdin.readline()))
    print(json.dumps({"names": list(steps), "versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[json.loads(line)]()), flush=True)
