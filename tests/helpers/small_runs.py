"""Whole small runs: data, an experiment compiled once, the command line."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from signal import SIGINT, raise_signal

import image_trees as images
import jax
import numpy as np
import orbax.checkpoint as ocp
from image_trees import write_idx_folder
from steps import make_batch, state_of

from examples.imagenet.cli import bind, parse
from examples.imagenet.config import Batching, Config, Model, Optimizer, Run
from examples.imagenet.data import arrays as data
from examples.imagenet.log import read_log
from examples.imagenet.run.checkpoint import Checkpoints
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import Stopped, fit

ROOT = Path(__file__).parents[2]
UPDATES = 24  # three epochs of eight
# What checkpoints say of the data, and of how a batch is cut.
FACTS = ({"images": 128}, {"BatchNorm's images": 8})


def split(seed, n):
    batch = make_batch(seed, n)
    return data.Split(batch.images, batch.labels)


def config(**run):
    """Three epochs of 8 updates on 2 devices, a network with BatchNorm."""
    return Config(
        model=Model(network="alexnet_bn_small", width=0.25),
        optimizer=Optimizer(learning_rate=5.0, warmup_epochs=1),
        batching=Batching(batch_size=16, epochs=3, eval_batch_size=20),
        run=Run(layers_every=3, **run),
    )


@cache
def experiment():
    """That of `config`, compiled once for all runs."""
    parts = data.in_memory(split(0, 128), split(1, 32), split(2, 32), 10)
    return Experiment(config(), parts, jax.local_devices()[:2])


def train_on(experiment, run, show=lambda record: None, make=Checkpoints):
    """Runs an experiment with checkpoints, from the newest one where there is one."""
    facts = experiment.identity(), experiment.grouping()
    return fit(experiment, run, show, make(experiment.config(run), *facts))


def train(out, *rest, **run):
    """Runs `experiment` in a folder, with checkpoints."""
    return train_on(experiment(), config(out=str(out), **run).run, *rest)


def when(kind, step, act):
    """What to show a run's records to: it acts on the one of that kind and step."""

    def show(record):
        if (record["kind"], record.get("step")) == (kind, step):
            act()

    return show


def all_kinds(folder):
    """The folder of a run whose log has every kind of record.

    An image is broken, a signal stops the run, it is resumed, and it diverges.
    """
    root = images.write_classes(folder / "tree", {"cat": 4, "dog": 4})
    images.write_classes(root, {"cat": 1, "dog": 1}, "val")
    odd = {"train/cat/1.png": b"broken", "train/cat/notes.txt": b""}
    images.write_tree(root, odd)
    words = f"--data {root} --network alexnet_bn_small --width 0.25 --pixels 28"
    words += " --optimizer sgd --learning-rate 1e30 --warmup-epochs 3 --epochs 6"
    words += " --batch-size 8 --devices 2 --eval-batch-size 2 --log-every 1"
    words += f" --layers-every 1 --broken blank --noise-scale --out {folder / 'out'}"
    settings = parse(words.split())
    whole = bind(settings)
    with suppress(Stopped):
        train_on(whole, settings.run, when("step", 0, lambda: raise_signal(SIGINT)))
    assert train_on(whole, settings.run).diverged
    return folder / "out"


def write_data(folder):
    return write_idx_folder(folder, train=split(0, 160), t10k=split(1, 32))


def flags(folder, out):
    """`config` as flags, with a checkpoint after every second update."""
    words = "--network alexnet_bn_small --width 0.25 --learning-rate 5 --epochs 3"
    words += " --warmup-epochs 1 --batch-size 16 --devices 2 --layers-every 3"
    words += f" --checkpoint-every 2 --validation-images 32 --data {folder}"
    words += " --eval-batch-size 20"
    return [*words.split(), "--out", str(out)]


# Code that comes first where no picture is looked at: drawing takes a second.
UNDRAWN = "import examples.imagenet.cli as m\nm.plot_logs = lambda *_: None\n"


def begin_python(*arguments, **environment):
    """A process of Python with these arguments, in the project's folder."""
    options = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"} | environment}
    options |= dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], **options, text=True)


def end(process):
    """What it said and how it ended, as `subprocess.run` gives it."""
    said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def python(*arguments, **environment):
    return end(begin_python(*arguments, **environment))


def begin(arguments, cache_folder, first=""):
    """`python -m examples.imagenet` in a process of its own, after the code `first`."""
    last = "import runpy\nrunpy.run_module('examples.imagenet', run_name='__main__')"
    return begin_python(
        *("-c", f"{first}\n{last}", *arguments),
        # Most of a run this small is compilation, which JAX can keep for the next one.
        JAX_COMPILATION_CACHE_DIR=str(cache_folder),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        PYTHONDONTWRITEBYTECODE="",
    )


def command_line(arguments, cache_folder, first="", status=0):
    """The same, to its end, with that status."""
    process = end(begin(arguments, cache_folder, first))
    assert process.returncode == status, process.stderr
    return process


def made_up(step):
    """A train state whose only leaf shows the number of its step."""
    return state_of({"params": {"w": np.full(3, step, np.float32)}}, step=step)


def save_all(out, accuracies, keep, *, reopen=False):
    """Saves a made-up state with each accuracy, its step counted from 1."""
    settings = config(checkpoints=keep, out=str(out))
    checkpoints = Checkpoints(settings, *FACTS)
    for step, accuracy in enumerate(accuracies, 1):
        checkpoints.save(made_up(step), step, 0.0, accuracy)
        if reopen:
            checkpoints.close()
            checkpoints = Checkpoints(settings, *FACTS)
    checkpoints.close()


def steps_of(out):
    """The checkpoints in a folder, which holds nothing else."""
    return sorted(int(path.name) for path in (out / "checkpoints").iterdir())


def saved(out, step=None):
    """A checkpoint's arrays, the newest's by default, read by nothing but orbax."""
    folder = out / "checkpoints" / str(step or steps_of(out)[-1]) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        leaves = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), leaves)
        return checkpointer.restore(folder, restore_args=as_numpy)


def assert_equal(found, expected):
    """Two trees of arrays, as states or as orbax gives them back, bit for bit."""
    found, expected = _leaves(found), _leaves(expected)
    assert found.keys() == expected.keys()
    for name, a in found.items():
        b = expected[name]
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def _leaves(tree):
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


def records(out, *kinds):
    """The records of these kinds in a folder's log; all, if none is given."""
    found = read_log(out / "log.jsonl")
    return [record for record in found if not kinds or record["kind"] in kinds]


def logged(out):
    """What the log says of steps, layers and epochs, without the clock's part."""
    kept = records(out, "step", "layers", "epoch")
    return [{k: v for k, v in record.items() if k != "seconds"} for record in kept]


def steps_logged(out, kind="step"):
    return [record["step"] for record in records(out, kind)]


def assert_same_run(out, whole):
    """Two runs left the same state and, but for the clock's part, the same log."""
    assert_equal(saved(out), saved(whole))
    assert logged(out) == logged(whole)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
