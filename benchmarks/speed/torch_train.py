"""Times training steps of ResNet-50 in PyTorch.

Started by benchmarks/speed/train_step.py with a Python that has torch. The network is
that of examples/imagenet/models, with the stride in the first 1×1 convolution and
pooling that rounds up. It is compiled, and its arrays are in the channels-last layout.
For a step that runs out of memory the time is NaN.
"""

import importlib
import math
from typing import Any

from benchmarks.speed.peer import Offer, serve
from benchmarks.speed.timer import Step, clock

torch: Any = importlib.import_module("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def resnet50() -> tuple[Any, Any]:
    """Builds ResNet-50. Returns its modules, and a function from images to logits."""
    nn = torch.nn

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


def prepare(task: Any) -> Step:
    """Returns a function that takes one training step and returns its seconds."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    modules, logits_of = resnet50()
    assert sum(x.numel() for x in modules.parameters()) == 25_557_032
    modules.to(DEVICE, memory_format=torch.channels_last)
    n, side = task["batch_size"], task["side"]
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    images = images.to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (n,), device=DEVICE)
    options = {"lr": 1e-3, "momentum": 0.9, "fused": True}
    optimizer = torch.optim.SGD(modules.parameters(), **options)

    @torch.compile(fullgraph=True, dynamic=False)  # type: ignore[untyped-decorator]
    def forward() -> Any:
        logits = logits_of((images.float() - 128.0) / 256.0).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss, (logits.argmax(1) == labels).float().mean()

    half = torch.autocast(DEVICE, torch.bfloat16, task["dtype"] == "bfloat16")
    loss: Any = None

    def step() -> None:
        nonlocal loss
        with half:
            loss, _ = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def timed() -> float:
        try:
            seconds = clock(step)
        except torch.OutOfMemoryError:
            return math.nan
        assert math.isfinite(loss.item())
        return seconds

    return timed


def offer(task: Any) -> Offer:
    versions = {"torch": torch.__version__, "device": DEVICE}
    versions["threads"] = torch.get_num_threads()
    return {"PyTorch, SGD": prepare(task)}, versions


if __name__ == "__main__":
    serve(offer)
