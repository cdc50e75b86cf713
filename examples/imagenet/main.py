"""The command line of one run: flags to configuration, then devices, data, training.

Leaves `log.jsonl`, `curves.png` and checkpoints in `--out`. Bad input ends with a
message that names the flag; nothing is written then.
"""

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro
from rich.console import Console

from .checkpoint import Checkpoints, exist, remove
from .config import Config
from .data import load
from .dry_run import describe
from .engine import start_devices
from .log import LOG, Record, read_log, tensorboard
from .loop import Result, Stopped, fit
from .models import image_pixels
from .recipe import configure
from .report import plot_runs, progress
from .trainer import Trainer

_PNG = "curves.png"


def parse(arguments: Sequence[str] | None) -> Config:
    """The flags over the defaults, or over those of the recipe that --recipe names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    named, _ = first.parse_known_args(arguments)
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[Config],
        prog="python -m examples.imagenet",
        description="Train an image classifier with LARS or momentum SGD.",
        args=arguments,
        default=configure(named.recipe),
    )


def main(arguments: Sequence[str] | None = None) -> Result | None:
    """Trains one network once; returns what the last line prints, None if it is dry."""
    console = Console()
    try:
        config = parse(arguments)
        # First of all, as JAX counts its devices once.
        devices = _devices(config)
        pixels = image_pixels(config.model.network)
        data = load(config.data.source, config.data.validation_images, pixels)
        trainer = Trainer(config, data, devices)
        if config.dry_run:
            console.print(describe(trainer), highlight=False, soft_wrap=True)
            return None
        checkpoints = _checkpoints(trainer)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    try:
        result = _train(trainer, checkpoints, console)
    except Stopped as stopped:
        console.print(f"{stopped}; --existing resume goes on from there")
        raise SystemExit(128 + stopped.signum) from None
    except KeyboardInterrupt:
        console.print("stopped; only a run under way, with --checkpoints, saves first")
        raise SystemExit(128 + signal.SIGINT) from None
    _report(result, config, console)
    return result


def _devices(config: Config) -> list[jax.Device]:
    if config.dry_run and config.run.devices:
        # As many as are asked for, whatever this machine has.
        jax.config.update("jax_platforms", "cpu")
    return start_devices(config.run.devices)


def _checkpoints(trainer: Trainer) -> Checkpoints | None:
    """A folder for them, empty unless the run is to go on; None if none are kept."""
    run = trainer.config.run
    try:
        Path(run.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {run.out!r}: {error.strerror}") from None
    if exist(run.out):
        if run.existing == "refuse":
            raise ValueError(
                f"--out: {run.out!r} holds an earlier run; give --existing resume to go"
                " on from its newest checkpoint, --existing replace to delete it, or"
                " another --out"
            )
        if run.existing == "replace":
            remove(run.out)
        elif not run.checkpoints:
            raise ValueError("--checkpoints: got 0; --existing resume needs 1 or more")
    if not run.checkpoints:
        return None
    images, slot = trainer.data.train.size, trainer.batch_norm_images
    return Checkpoints(run.out, trainer.config, images, slot)


def _train(
    trainer: Trainer, checkpoints: Checkpoints | None, console: Console
) -> Result:
    config, run = trainer.config, trainer.config.run
    out = Path(run.out)
    if run.existing == "resume" and checkpoints and not checkpoints.any:
        console.print(f"no checkpoint in {run.out}: starting at update 0")
    console.print(
        f"{config.model.network}, {config.optimizer.name}, batch {run.batch_size} over"
        f" {len(trainer.devices)} {trainer.devices[0].platform} devices,"
        f" {trainer.updates} updates",
        highlight=False,
    )
    with progress(config.optimizer.name, trainer.updates, console) as show:
        shows = [show, tensorboard(out / "tensorboard")] if run.tensorboard else [show]

        def on_record(record: Record) -> None:
            for each in shows:
                each(record)

        result = fit(trainer, run.seed, out / LOG, on_record, checkpoints)
    label = f"{config.optimizer.name}, batch {run.batch_size}"
    plot_runs({label: [out / LOG]}, out / _PNG)
    return result


def _report(result: Result, config: Config, console: Console) -> None:
    out = Path(config.run.out)
    if result.diverged:
        lost = next(r for r in read_log(out / LOG) if r["kind"] == "not_finite")
        console.print(
            f"stopped at update {lost['step']}: not finite, first {lost['where']};"
            " the scores are of the last state",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{config.data.evaluate_on} accuracy {result.accuracy:.2%}, top-5"
        f" {result.top5_accuracy:.2%} on {result.count} images after"
        f" {result.updates} updates, {result.seconds:.1f} s\n"
        f"log and curves: {out / LOG}, {out / _PNG}",
        highlight=False,
        soft_wrap=True,
    )
