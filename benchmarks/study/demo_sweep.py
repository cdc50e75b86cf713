"""Finds the learning rate of each method of `examples.imagenet.demo`.

    python -m benchmarks.study.demo_sweep

Every method tries as many rates, a factor of 2 apart. The score of a rate is the mean
accuracy on the validation images over the same seeds; no test image is used. Exits with
an error if the best rate is at an end of its range. Writes
benchmarks/results/demo_sweep.json.
"""

from dataclasses import asdict, replace
from statistics import mean

import jax

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
LOWEST = {
    "SGD, small batch": 0.0025,
    "SGD, large batch": 0.0025,
    "Nesterov SGD, large batch": 0.0025,
    "LARS, large batch": 1.25,
}


def sweep(method: str, data: Dataset, devices: list[jax.Device]) -> Record:
    runs, scores = [], {}
    for rate in (LOWEST[method] * 2**k for k in range(RATES)):
        experiment = Experiment(configure(method, rate, "validation"), data, devices)
        some = [replace(RUN, seed=seed, out="runs/sweep") for seed in SEEDS]
        results = [fit(experiment, run) for run in some]
        runs += [
            {"learning_rate": rate, "seed": seed} | asdict(result)
            for seed, result in zip(SEEDS, results, strict=True)
        ]
        scores[rate] = mean(result.accuracy for result in results)
        print(f"{method}, rate {rate:g}: {scores[rate]:.2%}", flush=True)
    best = max(scores, key=scores.__getitem__)
    if best in (min(scores), max(scores)):
        raise SystemExit(
            f"{method}: the best rate, {best:g}, is at an end of its range;"
            " change LOWEST"
        )
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
    main()
