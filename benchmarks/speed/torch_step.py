"""PyTorch's optimizers on the same leaves, a step each time their name is asked for.

Started by benchmarks/speed/optimizer_step.py with a Python that has torch and timm;
talks in lines of JSON: first the leaves, then a name, answered with the seconds of one
step.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any


def timm_lars() -> Any:
    """timm's Lars without timm's __init__, which would want torchvision."""
    found: Any = importlib.util.find_spec("timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "optim")]
    sys.modules[package.__name__] = package
    return importlib.import_module("timm_optim.lars").Lars


def prepare(torch: Any, make: Any, task: Any, device: str) -> Any:
    """A function that takes one step and waits for it."""
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

    def step() -> float:
        start = time.perf_counter()
        update()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def main() -> None:
    torch: Any = importlib.import_module("torch")
    task = json.loads(sys.stdin.readline())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"lr": 1e-3, "momentum": 0.9}
    sgd, lars = torch.optim.SGD, timm_lars()

    def compiled(groups: Any) -> Any:
        optimizer = lars(groups, **options)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    makers: dict[str, Any] = {
        "torch.optim.SGD, foreach": lambda x: sgd(x, foreach=True, **options),
        "torch.optim.SGD, fused": lambda x: sgd(x, fused=True, **options),
        "timm Lars": lambda x: lars(x, foreach=False, **options),
        "timm Lars, foreach": lambda x: lars(x, foreach=True, **options),
        "timm Lars, compiled": compiled,
    }
    steps = {name: prepare(torch, make, task, device) for name, make in makers.items()}
    versions: dict[str, Any] = {
        name: importlib.metadata.version(name) for name in ("torch", "timm")
    }
    versions["threads"] = torch.get_num_threads()
    print(json.dumps({"names": list(steps), "versions": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps(steps[json.loads(line)]()), flush=True)


if __name__ == "__main__":
    main()
