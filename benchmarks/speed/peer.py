"""Another Python with its own packages, the peer, which takes steps on request.

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
    """Runs a module of this folder with another Python.

    Yields the steps that it offers, and its versions. Without `python` there are no
    steps, and the versions are None.
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
            raise SystemExit(f"{' '.join(command)} ended with {process.wait()}")

        about = ask(task)
        yield {name: partial(ask, name) for name in about["names"]}, about["versions"]


def serve(offer: Callable[[Any], Offer]) -> None:
    """Makes an offer for the task that this process was sent, and takes its steps.

    Ends when there are no more requests.
    """
    steps, versions = offer(json.loads(sys.stdin.readline()))
    print(json.dumps({"names": list(steps), "versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[json.loads(line)]()), flush=True)
