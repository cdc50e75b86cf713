"""Norms of the layers: the paper's Table 4, and the same along a small net's training.

    python -m benchmarks.study.layers table4 [--images DIR]
    python -m benchmarks.study.layers training [--fashion-mnist DIR]

`table4`: full-size AlexNet-BN with the fillers of the authors' train_val2, at its first
update of 4,096 images, eight times 512 of which BatchNorm takes the moments. Without
ImageNet its gradients are those of other real images: crops of scikit-learn's two
photographs and, with --images, the first of class folders, centre crops of what is
warped to 256×256 pixels. Labels are drawn from 1,000 classes; "own" has the folders'.
Needs 9 GB of memory, and about ten minutes of two cores for each.

`training`: the study's final run of LARS at its large batch, seed 1, of each network.

Writes benchmarks/results/table4.json, or layers.json and docs/layers-*.png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.input_pipeline import crop, photographs
from benchmarks.study.__main__ import FASHION, Place, dataset
from benchmarks.study.page import DATA, NETWORKS
from benchmarks.study.protocol import FINAL, TUNED, Cell
from benchmarks.study.runs import read
from examples.imagenet.config import Batching, Config, Model, Network, Optimizer
from examples.imagenet.data.arrays import Split, in_memory
from examples.imagenet.data.pixels import for_evaluation
from examples.imagenet.data.sources import load
from examples.imagenet.log import LOG, read_log
from examples.imagenet.models import image_pixels
from examples.imagenet.provenance import provenance
from examples.imagenet.report.figures import plot_layers
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import fit
from examples.imagenet.step.devices import start_devices

RESULTS, PICTURES, LOGS = Path("benchmarks/results"), Path("docs"), Path("runs/layers")
NETWORK: Network = "alexnet_bn"
BATCH, SLOT, CLASSES = 4096, 512, 1000
SIDE = image_pixels(NETWORK)
EVERY = 5  # updates of the small nets


def crops() -> np.ndarray:
    """Of photographs, as many as the batch has, in turns."""
    random, sources = np.random.RandomState(0), list(photographs().values())
    images = np.empty((BATCH, SIDE, SIDE, 3), np.uint8)
    for i in range(BATCH):
        image = crop(sources[i % len(sources)], random)
        images[i] = for_evaluation(image, SIDE, "caffe")
    return images


def first_update(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """‖w‖ and ‖∇L‖ of every leaf, by the trainer."""
    split = Split(images, labels.astype(np.int32))
    config = Config(
        model=Model(network=NETWORK),
        optimizer=Optimizer(layers="all", warmup_epochs=0),
        batching=Batching(
            batch_size=BATCH, epochs=1, devices=1, accumulate=BATCH // SLOT
        ),
    )
    mean = tuple(images[:256].mean((0, 1, 2)).tolist())
    data = in_memory(split, split, split, CLASSES)._replace(pixel_mean=mean)
    experiment = Experiment.of(config, data, start_devices(1))
    _, metrics = experiment.step(experiment.init(0), experiment.batch(0, 0))
    stats = metrics["layers"]
    return {
        name: {"param_norm": float(w), "grad_norm": float(g)}
        for name, w, g in zip(
            experiment.layer_names, stats.param_norm, stats.grad_norm, strict=True
        )
    }


def table4(folder: str | None) -> None:
    """Writes after each set of images."""
    drawn = np.random.RandomState(0).randint(0, CLASSES, BATCH)
    record = provenance() | {"batch": BATCH, "moments": SLOT, "leaves": {}}

    def add(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        record["leaves"][name] = first_update(images, labels)
        (RESULTS / "table4.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: {record['leaves'][name]}", flush=True)

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
    """The log's norms, and a picture, of both networks."""
    record: Any = provenance() | {"every": EVERY, "networks": {}}
    runs = read()
    for network, title in NETWORKS.items():
        cell = Cell(DATA, network, TUNED[DATA], "lars")
        rate = runs.trials(cell)[1]
        if rate is None:
            raise SystemExit(f"error: {cell.name} has no best rate yet; run the study")
        source, data = dataset(DATA, Place(fashion))
        devices = start_devices(None)
        config = cell.config(source, rate, FINAL, len(devices))
        experiment = Experiment.of(config, data, devices[: config.batching.devices])
        out, seed = LOGS / network, FINAL.seeds[0]
        run = replace(config.run, layers_every=EVERY, seed=seed, out=str(out))
        result = fit(experiment, run)
        log = read_log(out / LOG)
        named = f"LARS of weights, {title}, batch {cell.batch:,}, γ = {rate:g}"
        plot_layers(log, named, PICTURES / f"layers-{network}.png")
        tables = [
            {
                "step": r["step"],
                "layers": {
                    name: {key: float(f"{x:.5g}") for key, x in row.items()}
                    for name, row in r["layers"].items()
                },
            }
            for r in log
            if r["kind"] == "layers"
        ]
        accuracy, updates = result.accuracy, result.updates
        record["networks"][network] = {
            "learning_rate": rate,
            "seed": seed,
            "accuracy": accuracy,
            "updates": updates,
            "tables": tables,
        }
        print(f"{cell.name}: {accuracy:.2%} after {updates} updates", flush=True)
    (RESULTS / "layers.json").write_text(json.dumps(record) + "\n")


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
