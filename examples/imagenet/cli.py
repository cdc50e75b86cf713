"""The command line of one run: flags to configuration, then devices, data, training.

Leaves `log.jsonl`, `curves.png` and checkpoints in `--out`. Bad input ends with a
message that names the flag; nothing is written then.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import tyro
from rich.console import Console

from .config import FACTS, Config, Run, settings
from .data.dataset import DataLost
from .data.sources import load
from .dry_run import describe
from .flags import flag
from .log import LOG, Record, read_log, tensorboard
from .models import image_pixels
from .recipe import changes, configure
from .report.figures import plot_runs
from .run.checkpoint import Checkpoints, NotSaved, exist, remove
from .run.cluster import TRY_AGAIN, check_agreement, join, raise_everywhere
from .run.experiment import Experiment
from .run.loop import Result, Stopped, check_run, fit
from .run.progress import progress
from .step.devices import CopiesDiffer, start_devices

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
    # orbax logs the traceback of each thread of a failed save; NotSaved is a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return run(parse(arguments))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except (DataLost, NotSaved, CopiesDiffer, OSError) as error:
        _give_up(f"error: {error}", 1)
    except KeyboardInterrupt:
        why = (
            "stopped; nothing is saved before the first update or with --checkpoints 0"
        )
        _give_up(why, 128 + signal.SIGINT)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        why = "error: a step failed, as when another process died or the network did"
        _give_up(f"{why}: {error}", TRY_AGAIN)


def _give_up(why: str, status: int) -> NoReturn:
    if jax.process_count() == 1:
        print(why, file=sys.stderr)
        raise SystemExit(status)
    print(f"process {jax.process_index()}: {why}", file=sys.stderr, flush=True)
    # An orderly end would wait for the others, who wait for this one.
    os._exit(status)


def run(config: Config) -> Result | None:
    if not config.dry_run:
        # First of all, as JAX counts its devices once.
        join(config.cluster)
    experiment = raise_everywhere(lambda: bind(config))
    # The first process speaks for all; each of them tells its own errors.
    console = Console(quiet=experiment.process > 0)
    if config.dry_run:
        text = describe(experiment, changes(config))
        console.print(text, highlight=False, soft_wrap=True)
        return None
    shared = {name: v for name, v in settings(config).items() if FACTS[name].shared}
    named = {flag(FACTS[name].name): value for name, value in shared.items()}
    check_agreement(named | experiment.identity())
    first = experiment.process == 0
    raise_everywhere(lambda: _prepare_out(config.run) if first else None)
    checkpoints = raise_everywhere(lambda: _checkpoints(config, experiment))
    try:
        result = _train(config, experiment, checkpoints, console)
    except Stopped as stopped:
        console.print(str(stopped))
        raise SystemExit(128 + stopped.signum) from None
    if first:
        _report(result, config, console)
    return result


def bind(config: Config) -> Experiment:
    """The configuration's experiment, on its data and devices; nothing is compiled."""
    devices = _devices(config)
    pixels = config.data.pixels or image_pixels(config.model.network)
    data = config.data
    dataset = load(
        data.source, data.validation_images, pixels, data.augment, data.workers
    )
    experiment = Experiment.of(config, dataset, devices)
    check_run(experiment, config.run)
    return experiment


def _devices(config: Config) -> list[jax.Device]:
    if config.dry_run and config.batching.devices:
        # As many as are asked for, whatever this machine has.
        jax.config.update("jax_platforms", "cpu")
    return start_devices(config.batching.devices)


def _prepare_out(run: Run) -> None:
    """A folder that is empty unless the run is to go on."""
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
            try:
                remove(run.out)
            except OSError as error:
                remedy = "delete it yourself, or give another --out"
                raise ValueError(f"--out: {run.out!r}: {error}; {remedy}") from None
        elif not run.checkpoints:
            raise ValueError("--checkpoints: got 0; --existing resume needs 1 or more")


def _checkpoints(config: Config, experiment: Experiment) -> Checkpoints | None:
    """What is in it; None if none are kept."""
    if not config.run.checkpoints:
        return None
    return Checkpoints(config, experiment.identity(), experiment.grouping())


def _train(
    config: Config,
    experiment: Experiment,
    checkpoints: Checkpoints | None,
    console: Console,
) -> Result:
    run, algorithm = config.run, config.optimizer.algorithm
    out, batch = Path(run.out), config.batching.batch_size
    if run.existing == "resume" and checkpoints and not checkpoints.any:
        console.print(f"no checkpoint in {run.out}: starting at update 0")
    processes, updates = experiment.plan.processes, experiment.schedule.updates
    of = f" of {processes} processes" if processes > 1 else ""
    changed = checkpoints.changes if checkpoints else []
    notes = [experiment.recipe.notes] if experiment.recipe.notes else []
    for line in (
        f"{config.model.network}, {algorithm}, batch {batch} over"
        f" {len(experiment.devices)} {experiment.devices[0].platform} devices{of},"
        f" {updates} updates",
        *(f"changed: {change}" for change in changed),
        *(f"note: {note}" for note in (*notes, *experiment.dataset.notes)),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    with progress(algorithm, updates, console) as show:
        shows = [show, tensorboard(out / "tensorboard")] if run.tensorboard else [show]

        def on_record(record: Record) -> None:
            for each in shows:
                each(record)

        result = fit(experiment, run, on_record, checkpoints, config.cluster)
    if experiment.process == 0:
        plot_runs({f"{algorithm}, batch {batch}": [out / LOG]}, out / _PNG)
    return result


def _report(result: Result, config: Config, console: Console) -> None:
    out = Path(config.run.out)
    log = read_log(out / LOG)
    if broken := {record["path"] for record in log if record["kind"] == "broken"}:
        console.print(f"{len(broken)} images could not be read; {out / LOG} names them")
    if result.diverged:
        lost = next(r for r in log if r["kind"] == "not_finite")
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
