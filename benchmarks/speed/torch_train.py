"""PyTorch's training step of ResNet-50, one each time it is asked for.

Started by benchmarks/speed/train_step.py with a Python that has torch; talks in lines
of JSON: first the task, then a name, answered with the seconds of one step, or NaN
where the device's memory was too small. The network is that of examples/imagenet/models
(stride in the first 1×1 convolution, pooling that rounds up), compiled, channels last.
"""

import importlib
import json
import math
import sys
import time
from typing import Any


def resnet50(nn: Any) -> tuple[Any, Any]:
    """All modules, and the function from normalised images to logits."""

    def unit(before: int, after: int, side: int, stride: int = 1) -> Any:
        conv = nn.Conv2d(before, after, side, stride, side // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after, eps=1e-4))

    stem = unit(3, 64, 7, 2).extend((nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)))
    blocks, channels = nn.ModuleList(), 64
    for stage, count in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            reduce, keep = unit(channels, inner, 1, stride), unit(inner, inner, 3)
            expand = unit(inner, 4 * inner, 1)
            residual = nn.Sequential(reduce, nn.ReLU(), keep, nn.ReLU(), expand)
            shortcut = nn.Identity() if block else unit(channels, 4 * inner, 1, stride)
            blocks.append(nn.ModuleList((residual, shortcut)))
            channels = 4 * inner
    head = nn.Linear(channels, 1000)

    def logits(x: Any) -> Any:
        x = stem(x)
        for residual, shortcut in blocks:
            x = (residual(x) + shortcut(x)).relu()
        return head(x.mean((2, 3)))

    return nn.ModuleList((stem, blocks, head)), logits


def prepare(torch: Any, task: Any, device: str) -> Any:
    """A function that takes one step and waits for it."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    modules, logits_of = resnet50(torch.nn)
    assert sum(x.numel() for x in modules.parameters()) == 25_557_032
    modules.to(device, memory_format=torch.channels_last)
    n, side = task["batch_size"], task["side"]
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (n,), device=device)
    options = {"lr": 1e-3, "momentum": 0.9, "fused": True}
    optimizer = torch.optim.SGD(modules.parameters(), **options)

    @torch.compile(fullgraph=True, dynamic=False)  # type: ignore[untyped-decorator]
    def forward() -> Any:
        logits = logits_of((images.float() - 128.0) / 256.0).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).float().mean()

    half = torch.autocast(device, torch.bfloat16, task["dtype"] == "bfloat16")

    def step() -> float:
        start = time.perf_counter()
        try:
            with half:
                loss, _ = forward()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device == "cuda":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            return math.nan
        seconds = time.perf_counter() - start
        assert math.isfinite(loss.item())
        return seconds

    return step


def main() -> None:
    torch: Any = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = prepare(torch, json.loads(sys.stdin.readline()), device)
    about = {"torch": torch.__version__, "device": device}
    about["threads"] = torch.get_num_threads()
    print(json.dumps({"names": ["PyTorch, SGD"], "versions": about}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), flush=True)


if __name__ == "__main__":
    main()
