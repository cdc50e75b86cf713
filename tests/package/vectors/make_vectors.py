"""Record what published LARS implementations do, for `test_published.py`.

Run this by hand. It writes .npz files into its own folder. The tests only read them.
Use a new environment of Python 3.11, separate from that of the project:

    pip install torch==2.13.0 numpy==2.4.6 jax==0.10.2 optax==0.2.8 dm-tree==0.1.10
    pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0 ninja setuptools
    pip install --no-deps timm==1.0.31 pytorch_optimizer==4.1.0
    pip install --no-deps solo-learn==1.0.2 flax==0.5.3
    python tests/package/vectors/make_vectors.py SOURCES [NAME ...]

`--no-deps` leaves out the dependencies of these distributions, because their rules need
only torch or jax. Each rule is loaded unmodified, without its package's `__init__`.

SOURCES is a folder with the other published files, which stay outside the project. It
holds a clone of each repository that `self_supervised.py` and `repositories.py` name,
as SOURCES/owner/name. It also holds the unpacked wheels of tensorflow 1.15.5 and
1.14.0, as SOURCES/tensorflow-1.15.5 and so on. NAMEs are the files to write, by default
all.

Everything is float64. One set of initial parameters, gradients and learning rates
(`inputs.npz`) goes through every configuration. Each other file holds
`<configuration>:<leaf>`, the leaf after every step, and `about`, a JSON text. It has
the source, the versions, and the arguments of every configuration by the source's
names. If a source has a schedule of its own, `<configuration>:learning_rates` are its
rates.

`schedules.json` holds the learning rates of the sources' schedules in the published
runs, at steps where the schedule changes. NAME is `schedules`.
"""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import distributions
import jax
import mlperf
import mlperf_keras
import numpy as np
import repositories
import schedules
import self_supervised
from inputs import make_inputs

HERE = Path(__file__).parent


def versions(*names):
    """The versions of Python and of the distributions of these names."""
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version()} | found


def write(name, runs, about):
    """Write the histories of all configurations of one implementation."""
    arrays = {}
    for configuration, histories in runs.items():
        for leaf, history in histories.items():
            values = np.stack(history)
            assert values.dtype == np.float64
            assert np.all(np.isfinite(values))
            arrays[f"{configuration}:{leaf}"] = values
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, path.stat().st_size, sorted(runs))


def main(sources, *names):
    """Write the named files, or all."""
    jax.config.update("jax_enable_x64", True)
    sources = Path(sources).resolve()
    inputs = params, grads, rates = make_inputs()
    arrays = {f"params:{leaf}": value for leaf, value in params.items()}
    arrays |= {f"grads:{leaf}": value for leaf, value in grads.items()}
    np.savez_compressed(HERE / "inputs.npz", learning_rates=rates, **arrays)
    for name, (record, needs, configurations) in distributions.RECORDERS.items():
        file = name.replace("-", "_")
        if not names or file in names:
            runs = {key: record(x, inputs, key) for key, x in configurations.items()}
            found = versions(name, *needs)
            path = distributions.MODULES[name].replace(".", "/") + ".py"
            source = {"repository": name, "commit": found[name], "path": path}
            about = {"source": source, "versions": found}
            write(file, runs, about | {"configurations": configurations})
    recorders = self_supervised.RECORDERS | repositories.RECORDERS
    recorders |= mlperf_keras.RECORDERS
    for name, (source, record, needs, configurations) in recorders.items():
        if not names or name in names:
            runs = {
                key: record(sources, x, inputs) for key, x in configurations.items()
            }
            about = {"source": source._asdict(), "versions": versions(*needs)}
            if name in self_supervised.SCHEDULES:
                about["schedule"] = self_supervised.SCHEDULES[name]._asdict()
            write(name, runs, about | {"configurations": configurations})
    if not names or "schedules" in names:
        found = versions("jax", "tensorflow", "tf_keras", "torch")
        published = schedules.RUNS | mlperf.RUNS
        runs = schedules.record(sources, published)
        text = json.dumps({"versions": found, "runs": runs}, indent=1)
        (HERE / "schedules.json").write_text(text + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
