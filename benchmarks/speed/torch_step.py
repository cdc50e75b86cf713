"""Times optimizers of PyTorch and timm on parameters of given shapes.

Started by benchmarks/speed/optimizer_step.py with a Python that has torch and timm.
"""

import importlib
import sys
import types
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed.peer import Offer, serve
from benchmarks.speed.timer import Step, clock

torch: Any = importlib.import_module("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timm_lars() -> Any:
    """Returns timm's Lars without running timm's __init__, which needs torchvision."""
    found: Any = find_spec("timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "optim")]
    sys.modules[package.__name__] = package
    return importlib.import_module("timm_optim.lars").Lars


def prepare(make: Any, task: Any) -> Step:
    """Returns a function that takes one step of an optimizer and returns its seconds.

    `make` returns the optimizer for its parameter groups. `task` has the
    shapes and dtype of the parameters.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(shape: Any, scale: float) -> Any:
        x = torch.randn(shape, generator=generator, device=DEVICE) * scale
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
    update = make(groups).step

    def step() -> None:
        update()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return partial(clock, step)


def offer(task: Any) -> Offer:
    options = {"lr": 1e-3, "momentum": 0.9}
    sgd, lars = (partial(f, **options) for f in (torch.optim.SGD, timm_lars()))

    def compiled(groups: Any) -> Any:
        optimizer = lars(groups)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    makers = {
        "torch.optim.SGD, foreach": partial(sgd, foreach=True),
        "torch.optim.SGD, fused": partial(sgd, fused=True),
        "timm Lars": partial(lars, foreach=False),
        "timm Lars, foreach": partial(lars, foreach=True),
        "timm Lars, compiled": compiled,
    }
    versions: dict[str, Any] = {name: version(name) for name in ("torch", "timm")}
    versions["threads"] = torch.get_num_threads()
    return {name: prepare(make, task) for name, make in makers.items()}, versions


if __name__ == "__main__":
    serve(offer)
