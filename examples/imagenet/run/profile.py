"""Traces some training steps for --profile, to view in TensorBoard or Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


class Profile:
    """A context manager that lets JAX's profiler trace the given steps.

    Only the first process traces.
    """

    def __init__(self, steps: range | None, folder: Path, process: int = 0) -> None:
        self._steps = steps if steps and process == 0 else range(0)
        self._folder, self._tracing = folder, False

    @contextmanager
    def step(self, step: int, state: Any) -> Iterator[None]:
        """A context manager around one step that starts or stops the trace if needed.

        `state` is the state that the previous step returned.
        """
        wanted = step in self._steps
        if wanted != self._tracing:
            jax.block_until_ready(state)  # the steps before have ended
            if wanted:
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            else:
                jax.profiler.stop_trace()
            self._tracing = wanted
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
