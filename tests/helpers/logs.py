"""Records of runs made by hand, with numbers to count on, and a real run's log."""

import json

from examples.imagenet.report.runs import Run

IMAGES = 1_281_167
LEAVES = {
    "conv1/kernel": {"param_norm": 1.86, "grad_norm": 0.22},
    "conv1/bias": {"param_norm": 0.0, "grad_norm": 0.0},
}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


SCORES = {"loss": 1.0, "accuracy": 0.5, "top5_accuracy": 0.9, "count": 50_000}


def config(batch=512, devices=4, algorithm="lars", rate=1.0, **other):
    return {
        "kind": "config",
        "data": {"evaluate_on": "test"},
        "model": {"network": "alexnet_bn"},
        "optimizer": {"algorithm": algorithm, "learning_rate": rate},
        "batching": {"batch_size": batch, "epochs": 100.0},
        "run": {"seed": 0} | other,
        "plan": {"processes": 2, "devices": devices // 2},
        "platform": "gpu",
    }


def step(number, batch=512, loss=1.0):
    epoch = number * batch / IMAGES
    scores = {"learning_rate": 1.0, "loss": loss, "accuracy": 0.5}
    return {"kind": "step", "step": number, "epoch": epoch} | scores


def speed(images_per_second, devices=4, done=1):
    return {
        "kind": "speed",
        "step": done,
        "images_per_second": images_per_second,
        "images_per_second_per_device": images_per_second / devices,
        "data_wait": 0.25,
    }


def epoch(number, accuracy, done):
    scores = SCORES | {"accuracy": accuracy}
    rest = {"split": "test", "step": done, "seconds": 60.0 * number}
    return {"kind": "epoch", "epoch": number} | scores | rest


def layers(number, leaves=LEAVES):
    rates = {"trust_ratio": 0.5, "local_rate": 0.0}
    table = {name: row | rates for name, row in leaves.items()}
    return {"kind": "layers", "step": number, "layers": table}


RESULT = {"kind": "result", "updates": 2, "diverged": False, "seconds": 1.0} | SCORES
LOST = {"kind": "not_finite", "step": 2, "where": "the output of fc8"}


def run(*log):
    return Run("a", None, list(log))


def write(folder, *log):
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in log)
    (folder / "log.jsonl").write_text(lines)
    return str(folder)
