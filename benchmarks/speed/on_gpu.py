"""Runs speed benchmarks and an epoch of training on a GPU, within a time limit.

    python -m benchmarks.speed.on_gpu --data DIR [--minutes 10] [--out DIR]

--data is a folder of images in class folders, such as those of CIFAR-10. The run
has four parts, in this order: the optimizers' steps on ResNet-50, the trainer's steps,
an epoch on the images, and the repeatability of training. Each part is a process of its
own, which is stopped when the time is over. What it has written by then stays.

Everything is written to the folder --out. It gets the results and the output of each
part, and parts.json with the command, the seconds and the exit status of each part.
To keep the results, copy the files in OUT/benchmarks/results to benchmarks/results and
run `make report`. With --tiny the sizes are small, to try the run on a CPU.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.results import RESULTS, Record
from examples.imagenet.provenance import provenance

_ROOT = Path(__file__).parents[2]
_UPDATES = "benchmarks.speed.optimizer_step --networks {networks} --rounds {rounds}"
_STEPS = (
    "benchmarks.speed.train_step --networks {networks} --batch-sizes {sizes}"
    " --rounds {rounds} --accumulate"
)
_EPOCH = (
    "examples.imagenet --data {data} --evaluate-on test --network resnet_small"
    " --width {width} --pixels 32 --augment rrc --dtype bfloat16 --batch-size {batch}"
    " --epochs {epochs} --warmup-epochs 0 --broken blank --checkpoints 0 --devices 1"
    " --out epoch --existing replace"
)
_REPEAT = (
    "benchmarks.speed.gpu_step --network {network} --batch-size {batch} --steps 10"
)


class Options(NamedTuple):
    """The flags of this benchmark."""

    data: Path  # folder with train/CLASS and test/CLASS
    out: Path = Path("runs/on_gpu")  # folder for all that is written
    minutes: float = 10  # time limit of the run
    tiny: bool = False  # use small sizes, to try the run on a CPU


def commands(given: Options) -> dict[str, str]:
    """Returns the command of each part of the run, as arguments of `python -m`."""
    data = shlex.quote(str(given.data.absolute()))
    if given.tiny:
        sizes = {"networks": "alexnet", "rounds": 2, "sizes": "2", "network": "alexnet"}
        sizes |= {"data": data, "width": 0.25, "batch": 4, "epochs": 0.1}
    else:
        sizes = {"networks": "resnet50", "rounds": 20, "sizes": "32 256"}
        sizes |= {"network": "resnet50", "data": data, "width": 1, "batch": 256}
        sizes |= {"epochs": 1}
    parts = {"updates": _UPDATES, "steps": _STEPS, "epoch": _EPOCH, "repeat": _REPEAT}
    return {name: command.format(**sizes) for name, command in parts.items()}


def run_part(name: str, command: str, out: Path, end: float) -> Record:
    """Runs a part of the run in `out`, and stops it when the clock shows `end`.

    The clock is `time.monotonic`. Returns the record of the part.
    """
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    start, status = time.monotonic(), "not started"
    if start < end:
        with (out / f"{name}.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *shlex.split(command)],
                cwd=out,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = f"status {process.wait(end - start)}"
            except subprocess.TimeoutExpired:
                status = "stopped at the time limit"
                os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
                process.wait()
    seconds = time.monotonic() - start
    print(f"{name}: {status} after {seconds:.0f} s", flush=True)
    return {"command": command, "seconds": seconds, "end": status}


def main() -> None:
    given = tyro.cli(Options, description=__doc__)
    if not (given.data / "train").is_dir():
        raise SystemExit(
            f"--data: {str(given.data)!r} has no folder train; give a folder with"
            " train/CLASS and test/CLASS"
        )
    end = time.monotonic() + 60 * given.minutes
    (given.out / RESULTS).mkdir(parents=True, exist_ok=True)
    record: Record = provenance() | {"minutes": given.minutes, "parts": {}}
    for name, command in commands(given).items():
        record["parts"][name] = run_part(name, command, given.out.absolute(), end)
        path = given.out / "parts.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    ends = {name: part["end"] for name, part in record["parts"].items()}
    if failed := [name for name, end in ends.items() if end != "status 0"]:
        raise SystemExit(f"not finished: {', '.join(failed)}; see {given.out}")


if __name__ == "__main__":
    main()
