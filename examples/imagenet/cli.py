"""The command line of one run: from flags to settings, devices, data and training.

A run writes `log.jsonl`, `curves.png` and checkpoints into the folder --out. An invalid
flag ends it before anything is written, with a message that names the flag.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import tyro

from .compile_for import gpus
from .config import FACTS, Config, Run, settings
from .data.dataset import DataLost
from .data.sources import load
from .dry_run import describe
from .flags import flag, read_flags
from .gpu_memory import describe_memory
from .log import LOG, Record, read_log, set_aside, tensorboard
from .models import image_pixels
from .recipe import changes, configure
from .report.figures import plot_logs
from .run.checkpoint import CHECKPOINTS, Checkpoints, NotSaved, exist, remove
from .run.cluster import (
    TRY_AGAIN,
    PeerLost,
    TryAgain,
    check_agreement,
    join,
    raise_everywhere,
)
from .run.experiment import Experiment
from .run.lock import owned
from .run.loop import Result, Stopped, check_run, fit
from .run.progress import progress
from .step.devices import CopiesDiffer, start_devices
from .terminal import Terminal, printable

_PNG = "curves.png"


def parse(arguments: Sequence[str] | None) -> Config:
    """Returns the settings of the run that the command line describes.

    A flag that is not given has its value in --recipe, or its default without --recipe.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", nargs="?")
    named, _ = first.parse_known_args(arguments)
    config: Config = read_flags(
        tyro.conf.OmitArgPrefixes[Config],
        "examples.imagenet",
        arguments,
        description="Train an image classifier with LARS or momentum SGD.",
        default=configure(named.recipe),
    )
    return config


def main(arguments: Sequence[str] | None = None) -> Result | None:
    """Trains one network and returns its result, or None after a dry run.

    Errors raise SystemExit with a message or an exit status. A run of several processes
    exits at once instead, because an orderly exit would wait for the other processes.
    """
    # orbax logs a traceback for each thread of a failed save; NotSaved is one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # orbax leaves a failed asyncio task behind if an array is damaged.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        return run(parse(arguments))
    except ValueError as error:
        raise SystemExit(printable(f"error: {error}")) from None
    except (DataLost, NotSaved, CopiesDiffer, OSError) as error:
        why, status = f"error: {error}", 1
    except KeyboardInterrupt:
        why = (
            "stopped by Ctrl-C before another checkpoint was saved; --existing resume"
            " continues from the last one, if there is one"
        )
        status = 128 + signal.SIGINT
    except TryAgain as error:
        why, status = f"error: {error}", TRY_AGAIN
    except MemoryError as error:
        why, status = _too_large(error), 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            why, status = _too_large(error), 1
        elif jax.process_count() == 1:
            raise
        else:
            why, status = f"error: {PeerLost('processes trained', error)}", TRY_AGAIN
    if jax.process_count() == 1:
        print(printable(why), file=sys.stderr)
        raise SystemExit(status)
    why = printable(f"process {jax.process_index()}: {why}")
    print(why, file=sys.stderr, flush=True)
    os._exit(status)


def _too_large(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return (
        f"error: the memory is too small ({text}); give a smaller --batch-size,"
        " --eval-batch-size, --width or --pixels, or a larger --accumulate"
    )


def run(config: Config) -> Result | None:
    """Trains the network and returns the result.

    With --dry-run it only prints a description of the run and returns None.
    """
    if not config.dry_run:
        join(config.cluster)  # before anything else makes JAX look for devices
    experiment = raise_everywhere(lambda: bind(config))
    # Every process raises its own errors; everything else only the first one prints.
    first = experiment.process == 0
    console = Terminal(quiet=not first)
    if config.dry_run:
        console.print(*describe(experiment, changes(config)), sep="\n")
        if config.compile_for:
            for line in describe_memory(experiment, config.compile_for):
                console.print(line)
        return None
    values = settings(config).items()
    shared = {flag(FACTS[k].name): v for k, v in values if FACTS[k].shared}
    identity = experiment.identity()
    check_agreement(shared | identity)
    with ExitStack() as stack:
        # The first process owns the folder for all, from before it looks into it.
        raise_everywhere(
            lambda: stack.enter_context(_out(config.run)) if first else None
        )
        checkpoints: Checkpoints | None = None
        if config.run.checkpoints:
            checkpoints = raise_everywhere(
                lambda: Checkpoints(config, identity, experiment.grouping())
            )
        try:
            result = _train(config, experiment, checkpoints, console)
        except Stopped as stopped:
            console.print(str(stopped))
            raise SystemExit(128 + stopped.signum) from None
        if first:
            _report(result, config, console)
        return result


def bind(config: Config) -> Experiment:
    """Loads the data, finds the devices, and returns the experiment to train.

    Raises ValueError if settings, data and devices do not fit together.
    """
    data, devices = config.data, config.batching.devices
    if config.dry_run and (devices or config.compile_for):
        # A dry run has as many devices as it asks for, on any machine.
        jax.config.update("jax_platforms", "cpu")
    chosen = start_devices(devices)
    if config.compile_for:
        chosen = gpus(config.compile_for, len(chosen))
    pixels = data.pixels or image_pixels(config.model.network)
    dataset = load(
        data.source, data.validation_images, pixels, data.augment, data.workers
    )
    if dataset.broken and data.broken == "stop":
        path, reason = dataset.broken[0]
        raise ValueError(
            f"--data: cannot read the image {path!r}: {reason}; repair the file, remove"
            " it, or give --broken blank; python -m examples.imagenet.prepare DIR lists"
            " all such images"
        )
    experiment = Experiment(config, dataset, chosen)
    check_run(experiment, config.run)
    return experiment


@contextmanager
def _out(run: Run) -> Iterator[None]:
    """Owns --out in a context; deletes or refuses an earlier run by --existing."""
    with ExitStack() as stack:
        try:
            warning = stack.enter_context(owned(Path(run.out)))
            _check_kinds(Path(run.out))
            earlier = exist(run.out)
            if earlier and run.existing == "replace":
                remove(run.out)
        except OSError as error:
            raise ValueError(
                f"--out: {error}; give a folder that can be written"
            ) from None
        if earlier and run.existing == "refuse":
            raise ValueError(
                f"--out: {run.out!r} holds an earlier run; give --existing resume to go"
                " on from its newest checkpoint, --existing replace to delete it, or"
                " another --out"
            )
        if earlier and run.existing == "resume" and not run.checkpoints:
            raise ValueError("--checkpoints: got 0; --existing resume needs 1 or more")
        if warning:
            print(printable(warning), file=sys.stderr)
        yield


def _check_kinds(out: Path) -> None:
    """Raises ValueError if the log or picture is a folder, or checkpoints a file."""
    for name in (LOG, _PNG, CHECKPOINTS):
        path, folder = out / name, name == CHECKPOINTS
        if os.path.lexists(path) and path.is_dir() != folder:
            raise ValueError(
                f"--out: {str(path)!r} is not a {'folder' if folder else 'file'}, which"
                " the run needs there; remove it, or give another --out"
            )


def _train(
    config: Config,
    experiment: Experiment,
    checkpoints: Checkpoints | None,
    console: Terminal,
) -> Result:
    run, algorithm = config.run, config.optimizer.algorithm
    out, batch = Path(run.out), config.batching.batch_size
    if run.existing == "resume" and checkpoints and not checkpoints.any:
        console.print(f"{run.out} holds no checkpoint: starting at update 0")
        first = experiment.process == 0
        if kept := raise_everywhere(lambda: set_aside(out / LOG) if first else None):
            console.print(f"the log of the earlier run is now {kept}")
    processes, updates = experiment.plan.processes, experiment.schedule.updates
    of = f" of {processes} processes" if processes > 1 else ""
    console.print(
        f"{config.model.network}, {algorithm}, batch {batch} over"
        f" {len(experiment.devices)} {experiment.devices[0].platform} devices{of},"
        f" {updates} updates"
    )
    for change in checkpoints.changes if checkpoints else []:
        console.print(f"changed since the checkpoint: {change}")
    for note in filter(None, (experiment.recipe.notes, *experiment.dataset.notes)):
        console.print(f"note: {note}")
    with progress(algorithm, updates, console) as show:
        shows = [show, tensorboard(out / "tensorboard")] if run.tensorboard else [show]

        def on_record(record: Record) -> None:
            for each in shows:
                each(record)

        return fit(experiment, run, on_record, checkpoints, config.cluster)


def _report(result: Result, config: Config, console: Terminal) -> None:
    """Draws the curves of a run that ended, and prints how it ended."""
    out = Path(config.run.out)
    log = read_log(out / LOG)
    label = f"{config.optimizer.algorithm}, batch {config.batching.batch_size}"
    plot_logs({label: [log]}, out / _PNG)
    if broken := {record["path"] for record in log if record["kind"] == "broken"}:
        console.print(f"{len(broken)} images could not be read; {out / LOG} names them")
    if result.diverged:
        last = next(record for record in log if record["kind"] == "not_finite")
        # An update leaves the state unchanged if its loss or gradient is not finite.
        state = "after" if result.updates > last["step"] else "before"
        console.print(
            f"training diverged and stopped at update {last['step']}: not finite, first"
            f" in {last['where']}; the accuracy below is that {state} this update"
        )
    console.print(
        f"{config.data.evaluate_on} accuracy {result.accuracy:.2%}, top-5"
        f" {result.top5_accuracy:.2%} on {result.count} images after"
        f" {result.updates} updates, {result.seconds:.1f} s"
    )
    console.print(f"log and curves: {out / LOG}, {out / _PNG}")
