"""PyTorch's and timm's optimizers, on the leaves that the benchmark sends.

Started by benchmarks/speed/optimizer_step.py with a Python that has torch and timm.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.peer import read_task, serve
from benchmarks.speed.timer import Step, clock


def timm_lars() -> Any:
    """Imports timm's Lars without timm's __init__, which needs torchvision."""
    found: Any = importlib.util.find_spec("timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "optim")]
    sys.modules[package.__name__] = package
    return importlib.import_module("timm_optim.lars").Lars


def prepare(torch: Any, make: Any, task: Any, device: str) -> Step:
    """Returns a function that takes one step and waits for it."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(shape: Any, scale: float) -> Any:
        x = torch.randn(shape, generator=generator, device=device) * scale
        return x.to(getattr(torch, task["dtype"]))

    weights: list[Any] = []
    others: list[Any] = []
    for shape, adapted in zip(task["shapes"], task["adapted"], strict=True):
        parameter = torch.nn.Parameter(draw(shape, 0.05))
        parameter.grad = draw(shape, 0.01)
        (weights if adapted else others).append(parameter)
    groups = [{"params": weights, "weight_decay": 5e-4}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    optimizer = make(groups)
    update = optimizer.step

    def step() -> None:
        update()
        if device == "cuda":
            torch.cuda.synchronize()

    return partial(clock, step)


def main() -> None:
    torch: Any = importlib.import_module("torch")
    task = read_task()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"lr": 1e-3, "momentum": 0.9}
    sgd, lars = torch.optim.SGD, timm_lars()

    def compiled(groups: Any) -> Any:
        optimizer = lars(groups, **options)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    makers: dict[str, Any] = {
        "torch.optim.SGD, foreach": partial(sgd, foreach=True, **options),
        "torch.optim.SGD, fused": partial(sgd, fused=True, **options),
        "timm Lars": partial(lars, foreach=False, **options),
        "timm Lars, foreach": partial(lars, foreach=True, **options),
        "timm Lars, compiled": compiled,
    }
    steps = {name: prepare(torch, make, task, device) for name, make in makers.items()}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "timm")}
    serve(steps, versions | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
