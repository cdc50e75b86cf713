"""The command line of one run: flags to configuration, then devices, data, training.

Leaves `log.jsonl` and `curves.png` in `--out`. Bad input ends with one line that
names the flag; nothing is written then.
"""

from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from .config import Config
from .data import load
from .engine import start_devices
from .loop import Result, Trainer, fit
from .report import plot_runs, progress

_PNG = "curves.png"


def main(arguments: Sequence[str] | None = None) -> Result:
    """Trains one network once; returns what the last line prints."""
    try:
        config = tyro.cli(
            tyro.conf.OmitArgPrefixes[Config],
            prog="python -m examples.imagenet",
            description="Train a small image classifier with LARS or momentum SGD.",
            args=arguments,
        )
        # First of all, as JAX counts its devices once.
        devices = start_devices(config.run.devices)
        data = load(config.data.source, config.data.validation_images)
        trainer = Trainer(config, data, devices)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    console = Console()
    run, out = config.run, Path(config.run.out)
    console.print(
        f"{config.model.network}, {config.optimizer.name}, batch {run.batch_size} over"
        f" {len(devices)} {devices[0].platform} devices, {trainer.updates} updates",
        highlight=False,
    )
    log = out / "log.jsonl"
    with progress(config.optimizer.name, trainer.updates, console) as show:
        result = fit(trainer, run.seed, log, show)
    plot_runs({f"{config.optimizer.name}, batch {run.batch_size}": [log]}, out / _PNG)
    if result.diverged:
        console.print(f"diverged at update {result.updates}: the loss is not finite")
    console.print(
        f"{config.data.evaluate_on} accuracy {result.accuracy:.2%} on {result.count}"
        f" images after {result.updates} updates, {result.seconds:.1f} s\n"
        f"log and curves: {log}, {out / _PNG}",
        highlight=False,
        soft_wrap=True,
    )
    return result
