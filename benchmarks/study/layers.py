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

Writes benchmarks/results/table4.json, or layers.json and docs/layers-*.png. `make
report` puts them into the tables of the study.
"""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.results import STUDY, STUDY_ROWS, Record, Table, markdown, read, save
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
# Each leaf's column in Table 4, its ‖w‖, ‖∇w‖ and their ratio as printed, and the norm
# std · √n, or value · √n, of the authors' filler. The caption says that x.0 is a weight
# and x.1 a bias, which is right for conv4 alone.
PAPER = {
    "conv1/kernel": ("conv1.1", 1.86, 0.22, 8.48, 0.01 * sqrt(11 * 11 * 3 * 96)),
    "conv1/bias": ("conv1.0", 0.098, 0.017, 5.76, 0.01 * sqrt(96)),
    "conv2/kernel": ("conv2.1", 5.546, 0.165, 33.6, 0.01 * sqrt(5 * 5 * 48 * 256)),
    "conv2/bias": ("conv2.0", 0.16, 0.002, 83.5, 0.01 * sqrt(256)),
    "conv3/kernel": ("conv3.1", 9.40, 0.135, 69.9, 0.01 * sqrt(3 * 3 * 256 * 384)),
    "conv3/bias": ("conv3.0", 0.196, 0.0015, 127, 0.01 * sqrt(384)),
    "conv4/kernel": ("conv4.0", 8.15, 0.109, 74.6, 0.01 * sqrt(3 * 3 * 192 * 384)),
    "conv4/bias": ("conv4.1", 0.196, 0.0013, 148, 0.01 * sqrt(384)),
    "conv5/kernel": ("conv5.1", 6.65, 0.09, 73.6, 0.01 * sqrt(3 * 3 * 192 * 256)),
    "conv5/bias": ("conv5.0", 0.16, 0.0002, 69, 0.01 * sqrt(256)),
    "fc6/kernel": ("fc6.1", 30.7, 0.26, 117, 0.005 * sqrt(9216 * 4096)),
    "fc6/bias": ("fc6.0", 6.4, 0.005, 1345, 0.1 * sqrt(4096)),
    "fc7/kernel": ("fc7.1", 20.5, 0.30, 68, 0.005 * sqrt(4096 * 4096)),
    "fc7/bias": ("fc7.0", 6.4, 0.013, 489, 0.1 * sqrt(4096)),
    "fc8/kernel": ("fc8.1", 20.2, 0.22, 93, 0.01 * sqrt(4096 * 1000)),
    "fc8/bias": ("fc8.0", 0.316, 0.016, 19, 0.01 * sqrt(1000)),
}


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
            raise SystemExit("--images: cannot read {}: {}".format(*taken.broken[0]))
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


def short(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def norms_and_ratios(record: Record) -> str:
    """Returns Markdown tables of norms and their ratios, the paper's and those here."""
    norms, ratios = [], []
    for name, (column, w, g, paper, expected) in PAPER.items():
        first = {"Table 4": column, "leaf": f"`{name}`"}
        ours = {title: found[name] for title, found in record["leaves"].items()}
        drawn = next(iter(ours.values()))["param_norm"]
        known = {"‖w‖": f"{w:g}", "fillers": f"{expected:.4g}", "drawn": f"{drawn:.4g}"}
        known["‖∇w‖"] = f"{g:g}"
        grads = {k: short(x["grad_norm"]) for k, x in ours.items()}
        norms.append(first | known | grads)
        own = {k: short(ratio(x)) for k, x in ours.items()}
        ratios.append(first | {"‖w‖/‖∇w‖": f"{paper:g}"} | own)
    return f"{markdown(norms)}\n{markdown(ratios)}"


def ratio(norms: Record) -> float:
    """Returns the ratio ‖w‖/‖∇w‖ of one leaf's recorded norms."""
    found: float = norms["param_norm"] / norms["grad_norm"]
    return found


def spread(record: Record) -> str:
    """Returns a Markdown table of the smallest and largest ratio ‖w‖/‖∇w‖.

    One row is over the weights and one over all leaves. One column is the paper's.
    """
    ratios = {"paper": {name: printed for name, (*_, printed, _) in PAPER.items()}}
    for name, leaves in record["leaves"].items():
        ratios[name] = {leaf: ratio(x) for leaf, x in leaves.items()}
    rows = []
    for title, end in (("weights", "kernel"), ("all leaves", "")):
        row = {"‖w‖/‖∇w‖ over": title}
        for name, found in ratios.items():
            some = [(x, leaf) for leaf, x in found.items() if leaf.endswith(end)]
            (low, lowest), (high, highest) = min(some), max(some)
            ends = f"{short(low)} ({lowest}) … {short(high)} ({highest})"
            row[name] = f"{ends}: {high / low:.0f}×"
        rows.append(row)
    return markdown(rows)


def along(record: Record) -> str:
    """Returns Markdown tables of the layers' norms at four times of each training."""
    text = ""
    for network, found in record["networks"].items():
        tables = found["tables"]
        some = [tables[i] for i in (0, len(tables) // 6, len(tables) // 2, -1)]
        text += f"\n`{network}`, γ = {found['learning_rate']:g}, seed {found['seed']},"
        text += f" {found['updates']} updates, {found['accuracy']:.1%}:"
        text += " ‖w‖ / ‖∇w‖ = ratio\n\n"
        rows = []
        for name in tables[0]["layers"]:
            row = {"leaf": f"`{name}`"}
            for table in some:
                x = table["layers"][name]
                norms = f"{short(x['param_norm'])} / {short(x['grad_norm'])}"
                row[f"update {table['step']}"] = f"{norms} = {short(ratio(x))}"
            rows.append(row)
        text += markdown(rows)
        text += f"\n![Norms and rates of the layers](layers-{network}.png)\n"
    return text


TABLES = (
    Table(STUDY_ROWS, "table 4", "table4.json", norms_and_ratios),
    Table(STUDY, "spread", "table4.json", spread),
    Table(STUDY_ROWS, "along training", "layers.json", along),
)


if __name__ == "__main__":
    commands: Any = {"table4": table4, "training": training}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
