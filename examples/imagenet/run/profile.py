"""`--profile`: a trace of some steps, for TensorBoard and Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the first process's steps of a range; use it as a context."""

    def __init__(self, steps: range | None, folder: Path, process: int = 0) -> None:
        self._steps = steps if steps and process == 0 else range(0)
        self._folder, self._tracing = folder, False

    @contextmanager
    def step(self, step: int, state: Any) -> Iterator[None]:
        """Around what begins a step; `state` is ready when those before have ended."""
        if step in self._steps and not self._tracing:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        elif self._tracing and step not in self._steps:
            jax.block_until_ready(state)
            self._stop()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracing:
            self._stop()
