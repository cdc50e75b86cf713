"""Another framework in a process of its own, which takes its turns when told to."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


class Peer:
    """Runs a script beside this file with another Python; talks in lines of JSON.

    The script is told its task, answers with the names of its steps and its versions,
    and from then on to a name with the seconds that one step took.
    """

    def __init__(self, python: str, script: str, task: dict[str, Any]) -> None:
        self.command = [python, str(Path(__file__).with_name(script))]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        about = self._ask(task)
        self.versions: dict[str, Any] = about["versions"]
        self.steps: dict[str, Callable[[], float]] = {
            name: partial(self._ask, name) for name in about["names"]
        }

    def _ask(self, request: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            status = self.process.wait()
            raise SystemExit(f"{' '.join(self.command)} ended with {status}")
        return json.loads(answer)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
