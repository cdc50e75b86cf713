"""Measures the norms of each layer's weights and gradients, in two ways.

    python -m benchmarks.study.layers table4 [--images DIR]
    python -m benchmarks.study.layers training [--fashion-mnist DIR]

`table4` repeats the measurement of the LARS paper's Table 4. It takes the first update
of full-size AlexNet-BN, whose initial values are those of the Caffe fillers in the
authors' train_val2. The batch has 4,096 images, and BatchNorm takes the moments of 512.
The images are crops of scikit-learn's two photographs and, with --images, those of
class folders. They are warped to 256×256 pixels and cropped at the centre. Labels are
drawn at random from 1,000 classes; "own labels" are those of the folders. Needs 9 GB of
memory. Each set of images takes about ten minutes on two cores.

`training` trains the two networks of the study of large batches with LARS at the batch
size 8,192, as in the study's run with seed 1, and records the norms of their layers.

Writes benchmarks/results/table4.json, or layers.json and docs/layers-*.png.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.results import STUDY, Record, read, save
from benchmarks.speed.input_pipeline import crops
from benchmarks.study.protocol import BN_IMAGES, DATA, FINAL, NETWORKS, TUNED, Cell
from benchmarks.study.runs import STUDY_FILE, Job, Runs
from benchmarks.study.train import FASHION, Place, train
from examples.imagenet.config import Batching, Config, Model, Network, Optimizer
from examples.imagenet.data.arrays import Split, in_memory
from examples.imagenet.data.pixels import for_evaluation
from examples.imagenet.data.sources import load
from examples.imagenet.log import LOG, read_log
from examples.imagenet.models import image_pixels
from examples.imagenet.report.figures import plot_layers
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.step.devices import start_devices

LOGS = Path("runs/layers")
NETWORK: Network = "alexnet_bn"
BATCH, CLASSES = 4096, 1000
SIDE = image_pixels(NETWORK)
EVERY = 5  # updates of the small networks


def first_update(images: np.ndarray, labels: np.ndarray) -> Record:
    """Takes AlexNet-BN's first update, and returns ‖w‖ and ‖∇L‖ of every leaf.

    They are the norms that the trainer logs.
    """
    split, parts = Split(images, labels.astype(np.int32)), BATCH // BN_IMAGES
    config = Config(
        model=Model(network=NETWORK),
        optimizer=Optimizer(layers="all", warmup_epochs=0),
        batching=Batching(batch_size=BATCH, epochs=1, devices=1, accumulate=parts),
    )
    mean = tuple(images[:256].mean((0, 1, 2)).tolist())
    data = in_memory(split, split, split, CLASSES)._replace(pixel_mean=mean)
    bound = Experiment(config, data, start_devices(1))
    _, metrics = bound.step(bound.init(0), bound.batch(0, 0))
    stats = metrics["layers"]
    pairs = zip(stats.param_norm.tolist(), stats.grad_norm.tolist(), strict=True)
    norms = [{"param_norm": w, "grad_norm": g} for w, g in pairs]
    return dict(zip(bound.layer_names, norms, strict=True))


def table4(images: str = "") -> None:
    """Measures the norms of AlexNet-BN for each set of images; writes table4.json.

    Args:
      images: a folder with class folders in its train/, such as ImageNet's.
    """
    drawn = np.random.RandomState(0).randint(0, CLASSES, BATCH)
    record: Any = {"batch": BATCH, "moments": BN_IMAGES, "leaves": {}}

    def add(name: str, images: np.ndarray, labels: np.ndarray) -> None:
        record["leaves"][name] = first_update(images, labels)
        print(f"{name}: {record['leaves'][name]}")
        save("table4.json", record)

    photographs = [for_evaluation(x, SIDE, "caffe") for x in crops(BATCH)]
    add("photographs", np.stack(photographs), drawn)
    if images:
        source: Any = load(images, 0, SIDE, "caffe").train
        order = np.random.RandomState(0).permutation(source.size)[:BATCH]
        taken = source.take(order)
        if taken.broken:
            raise SystemExit(
                "error: --images: cannot read {}: {}".format(*taken.broken[0])
            )
        add(Path(images).name, taken.images, drawn)
        add(f"{Path(images).name}, own labels", taken.images, taken.labels)


def training(fashion_mnist: str = FASHION) -> None:
    """Trains the two networks of the study; writes layers.json and draws the norms.

    Args:
      fashion_mnist: the folder of Fashion-MNIST's IDX files.
    """
    runs, networks = Runs(read(STUDY_FILE)), {}
    for network, title in NETWORKS.items():
        cell = Cell(DATA, network, TUNED[DATA], "lars")
        rate, seed, out = runs.best(cell), FINAL.seeds[0], LOGS / network
        if rate is None:
            raise SystemExit(
                f"error: {cell.name} has no best learning rate yet; run python -m"
                " benchmarks.study first"
            )
        job, place = Job(cell, rate, FINAL, seed), Place(fashion_mnist)
        result = train(job, place, out, layers_every=EVERY)
        log = read_log(out / LOG)
        named = f"LARS of weights, {title}, batch {cell.batch:,}, γ = {rate:g}"
        plot_layers(log, named, STUDY.with_name(f"layers-{network}.png"))
        tables = (record for record in log if record["kind"] == "layers")
        networks[network] = {
            "learning_rate": rate,
            "seed": seed,
            "accuracy": result.accuracy,
            "updates": result.updates,
            "tables": [{k: shorten(r[k]) for k in ("step", "layers")} for r in tables],
        }
        print(f"{cell.name}: {result.accuracy:.2%} after {result.updates} updates")
    save("layers.json", {"every": EVERY, "networks": networks}, indent=None)


def shorten(value: Any) -> Any:
    """Returns a JSON value with each float rounded to five significant digits."""
    return json.loads(json.dumps(value), parse_float=lambda x: float(f"{float(x):.5g}"))


if __name__ == "__main__":
    commands: Any = {"table4": table4, "training": training}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
