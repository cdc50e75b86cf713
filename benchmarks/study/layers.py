"""Measures the norms of layers: for the paper's Table 4, and along a small training.

    python -m benchmarks.study.layers table4 [--images DIR]
    python -m benchmarks.study.layers training [--fashion-mnist DIR]

`table4` takes the first update of full-size AlexNet-BN, whose initial values are those
of the fillers in the authors' train_val2. The batch has 4,096 images, and BatchNorm
takes the moments of 512. Without ImageNet the gradients are those of other real images:
crops of scikit-learn's two photographs and, with --images, images of class folders.
These are warped to 256×256 pixels and cropped at the centre. Labels are drawn from
1,000 classes; "own labels" are those of the folders. Needs 9 GB of memory, and about
ten minutes on two cores for each set of images.

`training` repeats the study's final run of LARS at its large batch, seed 1, for each
network.

Writes benchmarks/results/table4.json, or layers.json and docs/layers-*.png.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import STUDY, Record, read, save
from benchmarks.speed.input_pipeline import crop, photographs
from benchmarks.study.protocol import BN_IMAGES, DATA, FINAL, NETWORKS, RUN, TUNED, Cell
from benchmarks.study.runs import STUDY_FILE, Runs
from benchmarks.study.train import FASHION, Place, experiment
from examples.imagenet.config import Batching, Config, Model, Network, Optimizer
from examples.imagenet.data.arrays import Split, in_memory
from examples.imagenet.data.pixels import for_evaluation
from examples.imagenet.data.sources import load
from examples.imagenet.log import LOG, read_log
from examples.imagenet.models import image_pixels
from examples.imagenet.report.figures import plot_layers
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

LOGS = Path("runs/layers")
NETWORK: Network = "alexnet_bn"
BATCH, CLASSES = 4096, 1000
SIDE = image_pixels(NETWORK)
EVERY = 5  # updates of the small networks


def crops() -> np.ndarray:
    """Returns as many crops of the photographs, in turns, as the batch has images."""
    random, sources = np.random.RandomState(0), list(photographs().values())
    return np.stack(
        [
            for_evaluation(crop(sources[i % len(sources)], random), SIDE, "caffe")
            for i in range(BATCH)
        ]
    )


def first_update(images: np.ndarray, labels: np.ndarray) -> Record:
    """Returns ‖w‖ and ‖∇L‖ of every leaf, as the trainer measures them."""
    split = Split(images, labels.astype(np.int32))
    config = Config(
        model=Model(network=NETWORK),
        optimizer=Optimizer(layers="all", warmup_epochs=0),
        batching=Batching(
            batch_size=BATCH, epochs=1, devices=1, accumulate=BATCH // BN_IMAGES
        ),
    )
    mean = tuple(images[:256].mean((0, 1, 2)).tolist())
    data = in_memory(split, split, split, CLASSES)._replace(pixel_mean=mean)
    bound = Experiment(config, data, start_devices(1))
    _, metrics = bound.step(bound.init(0), bound.batch(0, 0))
    stats = metrics["layers"]
    norms = zip(stats.param_norm.tolist(), stats.grad_norm.tolist(), strict=True)
    fields = ("param_norm", "grad_norm")
    rows = (dict(zip(fields, pair, strict=True)) for pair in norms)
    return dict(zip(bound.layer_names, rows, strict=True))


def table4(folder: str | None) -> None:
    """Measures the norms for each set of images, and writes after each."""
    drawn = np.random.RandomState(0).randint(0, CLASSES, BATCH)
    record: Any = {"batch": BATCH, "moments": BN_IMAGES, "leaves": {}}

    def add(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        record["leaves"][name] = first_update(images, labels)
        print(f"{name}: {record['leaves'][name]}")
        save("table4.json", record)

    add("photographs", crops(), drawn)
    if folder:
        source: Any = load(folder, 0, SIDE, "caffe").train
        order = np.random.RandomState(0).permutation(source.size)[:BATCH]
        taken = source.take(order)
        if taken.broken:
            raise SystemExit(f"error: --images: {taken.broken[0]}")
        add(Path(folder).name, taken.images, drawn)
        add(f"{Path(folder).name}, own labels", taken.images, taken.labels)


def training(fashion: str) -> None:
    """Trains both networks, keeps the norms of their logs and draws them."""
    runs, networks = Runs(read(STUDY_FILE)), {}
    for network, title in NETWORKS.items():
        cell = Cell(DATA, network, TUNED[DATA], "lars")
        rate, seed = runs.best(cell), FINAL.seeds[0]
        if rate is None:
            raise SystemExit(f"error: {cell.name} has no best rate yet; run the study")
        run = replace(RUN, layers_every=EVERY, seed=seed, out=str(LOGS / network))
        result = fit(experiment(cell, rate, FINAL, Place(fashion)), run)
        log = read_log(LOGS / network / LOG)
        named = f"LARS of weights, {title}, batch {cell.batch:,}, γ = {rate:g}"
        plot_layers(log, named, STUDY.with_name(f"layers-{network}.png"))
        layers = [r for r in log if r["kind"] == "layers"]
        networks[network] = {
            "learning_rate": rate,
            "seed": seed,
            "accuracy": result.accuracy,
            "updates": result.updates,
            "tables": [
                {"step": r["step"], "layers": shorten(r["layers"])} for r in layers
            ],
        }
        print(f"{cell.name}: {result.accuracy:.2%} after {result.updates} updates")
    save("layers.json", {"every": EVERY, "networks": networks}, indent=None)


def shorten(value: Any) -> Any:
    """Returns numbers in nested dictionaries with five digits."""
    if isinstance(value, dict):
        return {key: shorten(part) for key, part in value.items()}
    return float(f"{value:.5g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["table4", "training"])
    parser.add_argument("--images", metavar="DIR", help="class folders, with a train/")
    parser.add_argument("--fashion-mnist", metavar="DIR", default=FASHION)
    given = parser.parse_args()
    if given.what == "table4":
        table4(given.images)
    else:
        training(given.fashion_mnist)


if __name__ == "__main__":
    main()
