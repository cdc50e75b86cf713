"""Another Python with its own packages, which takes steps when it is told to.

The two processes exchange lines of JSON. The peer is sent its task and answers with the
names of its steps and its versions. From then on it is sent a name, and answers with
the seconds that one step took, or with NaN where memory ran out. This module needs the
standard library alone, as the peer imports it too.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from benchmarks.speed.timer import Step


class Peer(NamedTuple):
    """The steps that the other Python offers, and its versions."""

    steps: dict[str, Step]
    versions: dict[str, Any] | None


@contextmanager
def start_peer(python: str | None, module: str, task: Any) -> Iterator[Peer]:
    """Runs a module of this folder with another Python; without one, has no steps."""
    if not python:
        yield Peer({}, None)
        return
    command = [python, "-m", f"benchmarks.speed.{module}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def ask(request: Any) -> Any:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise SystemExit(f"{' '.join(command)} ended with {process.wait()}")
            return json.loads(answer)

        about = ask(task)
        steps: dict[str, Step] = {name: partial(ask, name) for name in about["names"]}
        yield Peer(steps, about["versions"])


def read_task() -> Any:
    """Returns the task that the peer was sent."""
    return json.loads(sys.stdin.readline())


def serve(steps: Mapping[str, Step], versions: dict[str, Any]) -> None:
    """Takes the steps that the peer is asked for, until there are no more requests."""
    print(json.dumps({"names": list(steps), "versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[json.loads(line)]()), flush=True)
