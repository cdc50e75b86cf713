"""Finds the learning rate for each optimizer and batch size in the trainer's demo.

    python -m benchmarks.study.demo_sweep

The demo is `examples.imagenet.demo`. Each of its methods, such as "LARS, large batch",
is trained with eight learning rates, a factor of 2 apart. The score of a rate is the
mean accuracy on the validation images over the same two seeds. No test image is used.
Exits with an error if the best rate is at an end of its range. Writes
benchmarks/results/demo_sweep.json.
"""

from dataclasses import asdict, replace
from statistics import mean

import jax
import tyro

from benchmarks.results import Record, save
from examples.imagenet.data.dataset import Dataset
from examples.imagenet.data.sources import load
from examples.imagenet.demo import METHODS, RUN, SWEEP, configure, protocol
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

SEEDS = (100, 101)  # not those of the demo
RATES = 8
# The lowest rate of each method.
LOWEST = dict.fromkeys(METHODS, 0.0025) | {"LARS, large batch": 1.25}


def sweep(method: str, data: Dataset, devices: list[jax.Device]) -> Record:
    runs, scores = [], {}
    for rate in (LOWEST[method] * 2**k for k in range(RATES)):
        experiment = Experiment(configure(method, rate, "validation"), data, devices)
        results = []
        for seed in SEEDS:
            run = replace(RUN, seed=seed, out="runs/sweep")
            results.append(fit(experiment, run))
            runs.append({"learning_rate": rate, "seed": seed} | asdict(results[-1]))
        scores[rate] = mean(result.accuracy for result in results)
        print(f"{method}, rate {rate:g}: {scores[rate]:.2%}", flush=True)
    best = max(scores, key=scores.__getitem__)
    if best in (min(scores), max(scores)):
        where = "is the lowest or highest tried; change LOWEST in demo_sweep.py"
        raise SystemExit(f"{method}: the best learning rate, {best:g}, {where}")
    return {"protocol": protocol(method), "best": best, "scores": scores, "runs": runs}


def main() -> None:
    devices, data = start_devices(None), load("mnist")
    record = {
        "devices": len(devices),
        "seeds": SEEDS,
        "split": "validation",
        "methods": {method: sweep(method, data, devices) for method in METHODS},
    }
    save(SWEEP.name, record)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
