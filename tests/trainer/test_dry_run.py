"""Law: `--dry-run` says of every recipe what the run is; no batch is split unevenly."""

import json
import math
import re
from functools import lru_cache, partial

import jax
import numpy as np
import pytest
from cases import assert_line
from small_runs import ROOT, python
from trees import assert_refused

from examples.imagenet.cli import main, parse
from examples.imagenet.config import Batching
from examples.imagenet.data.sources import load
from examples.imagenet.dry_run import describe
from examples.imagenet.flags import flag
from examples.imagenet.plan import make_plan
from examples.imagenet.run.experiment import Experiment, make_schedule
from examples.imagenet.step.step import train_step
from lars_optax import recipes

IMAGENET = 1_281_167
PARAMETERS = dict.fromkeys(("alexnet", "alexnet_bn"), 60_965_224)
PARAMETERS |= dict.fromkeys(("resnet50", "resnet50_v1.5"), 25_557_032)
# What a user could give for what a source leaves out.
FILLED = {"learning_rate": 10.0, "warmup_epochs": 5, "warmup_start": 0.001}
FILLED |= {"momentum": 0.9, "weight_decay": 5e-4}


def integers(text):
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def row(text, name):
    return re.search(rf"^{name} +(.*)$", text, re.MULTILINE)[1]


def gibibytes(text):
    amount, unit = re.match(r"about ([\d.,]+) (GiB|MiB)", row(text, "memory")).groups()
    return float(amount.replace(",", "")) / (1 if unit == "GiB" else 1024)


@pytest.fixture
def dry_run(capsys):
    """What `--dry-run` prints with these flags, on one device and synthetic data."""

    def run(flags):
        assert main(f"{flags} --data synthetic --dry-run --devices 1".split()) is None
        return capsys.readouterr().out

    return run


def check_refusal(recipe, gaps, flags):
    """One line that names every gap and tells what is known of it."""
    line = assert_line(f"{flag(gaps[0])}: {re.escape(recipe.name)} ", flags)
    for gap in gaps:
        hint = recipe.hints.get(gap)
        assert flag(gap) + (f" ({hint})" if hint else "") in line


def check_table(text, recipe):
    """The rates are the recipe's own at those steps; start, end and peak are there."""
    steps = round(recipe.epochs * IMAGENET / recipe.batch_size)
    if recipe.steps:
        steps = recipe.steps.total
        assert "as its source has it" in row(text, "steps") or recipe.name in {
            "mlperf-rcp-resnet50-lars-1632", "mlperf-rcp-resnet50-lars-3264",
            "mlperf-rcp-resnet50-lars-13056",
        }  # fmt: skip
    assert integers(row(text, "steps"))[0] == steps
    table = re.findall(r"^ *([\d,]+) +([\d.]+) +(\S+)$", text, re.MULTILINE)
    shown = np.array([integers(step)[0] for step, _, _ in table])
    found = np.array([float(rate) for _, _, rate in table])
    assert (shown[0], shown[-1]) == (0, steps - 1)
    rates = np.asarray(jax.vmap(recipe.schedule(IMAGENET))(np.arange(steps)))
    np.testing.assert_allclose(found, rates[shown], rtol=1e-5)  # six digits printed
    np.testing.assert_allclose(found.max(), rates.max(), rtol=1e-5)
    epochs = shown * recipe.batch_size / IMAGENET
    np.testing.assert_allclose([float(row[1]) for row in table], epochs, atol=0.0051)


@pytest.mark.parametrize("network", PARAMETERS)
def test_every_recipe_dry_runs_once_its_gaps_are_filled(network, dry_run, monkeypatch):
    monkeypatch.setattr("examples.imagenet.cli.load", lru_cache(load))  # noise, 40 MB
    every = map(recipes.get, recipes.names())
    ours = [r for r in every if r.task == "classification"]
    of_network = [r for r in ours if r.network == network]
    assert of_network
    for recipe in of_network:
        for images in (32, 256) if recipe.batch_size == 8192 else (32,):
            slots = recipe.batch_size // images  # all on one device
            flags = f"--recipe {recipe.name} --accumulate {slots}"
            if recipe.name.startswith("mlperf-v0.6"):
                flags += " --momentum-order scaled"
            if gaps := recipe.missing():
                check_refusal(recipe, gaps, f"{flags} --data synthetic --dry-run")
            text = dry_run(" ".join([flags, *(f"{flag(g)} {FILLED[g]}" for g in gaps)]))
            full = recipe.replace(**{gap: FILLED[gap] for gap in recipe.missing()})
            assert row(text, "recipe") == f"{recipe.name} ({recipe.source})"
            assert f"{PARAMETERS[network]:,} parameters" in row(text, "network")
            rule = row(text, "optimizer")
            assert rule.startswith(recipe.algorithm)
            assert f"momentum {full.momentum:g} " in rule
            assert f"weight decay {full.weight_decay:g} " in rule
            if recipe.algorithm == "lars":
                assert f"{full.denominator} denominator, ε {full.eps:g}," in rule
            batch, *parts = integers(row(text, "batch"))
            assert batch == recipe.batch_size == math.prod(parts)
            assert parts[-2:] == [slots, images]
            check_table(text, full)


@pytest.mark.parametrize(("batch", "updates", "whole"), [
    (8192, 6875, 43), (32768, 2355, 60),
])  # fmt: skip
def test_a_run_with_the_steps_of_a_log_ends_its_epochs_and_then_itself(
    batch, updates, whole
):
    recipe = recipes.get(f"mlperf-v1.0-resnet50-lars-{batch}")
    schedule = make_schedule(recipe, IMAGENET)
    expected = {round(k * IMAGENET / batch): k for k in range(1, whole + 1)}
    assert schedule.updates == len(schedule.rates) == updates
    assert schedule.epochs == expected | {updates: updates * batch / IMAGENET}


@pytest.mark.parametrize("given", ["separate", "joint"])
def test_the_order_post_has_the_joint_denominator_that_it_trains_with(given, dry_run):
    flags = f"--momentum-order post --denominator {given} --accumulate 8192"
    text = dry_run(f"--recipe mlperf-v1.0-resnet50-lars-8192 {flags}")
    assert "trust coefficient 0.001, joint denominator, ε 0," in row(text, "optimizer")


def test_sgd_has_no_trust_ratio_in_the_order_post(dry_run):
    flags = "--optimizer sgd --momentum-order post --accumulate 8192"
    text = dry_run(f"--recipe mlperf-v1.0-resnet50-lars-8192 {flags}")
    expected = "sgd, momentum 0.9 with the learning rate applied after it, weight"
    assert row(text, "optimizer").startswith(expected)


def test_a_dry_run_has_as_many_devices_as_are_asked_for():
    flags = "--dry-run --devices 40 --batch-size 320 --solvers-per-device 2"
    run = python("-m", "examples.imagenet", *flags.split())
    assert run.returncode == 0, run.stderr
    assert integers(row(run.stdout, "batch")) == [320, 1, 40, 2, 1, 4]


@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_is_split_evenly_or_the_nearest_sizes_are_named(devices, processes):
    """Against the list of all sizes that divide and for which there are images."""
    for accumulate, solvers, images in [(1, 1, 40), (2, 1, 41), (3, 2, 100), (5, 4, 7)]:
        slots = devices * processes * accumulate * solvers
        sizes = range(slots, images + 1, slots)
        for batch in [*range(1, 2 * slots + 2), images - 1, images, images + 1, 997]:
            slotted = {"accumulate": accumulate, "solvers_per_device": solvers}
            arguments = Batching(batch, **slotted), devices, images, processes
            if batch in sizes:
                plan = make_plan(*arguments)
                assert plan[:-1] == (processes, devices, solvers, accumulate)
                assert math.prod(plan) == batch
                continue
            with pytest.raises(ValueError, match=r"^--batch-size: .*; ") as error:
                make_plan(*arguments)
            below = [size for size in sizes if size < batch][-1:]
            above = [size for size in sizes if size > batch][:1]
            remedy = str(error.value).rpartition(";")[2]
            assert integers(remedy) == below + above, error.value
            assert "even" not in remedy


def test_a_batch_that_cannot_be_split_at_all_is_told_why():
    why = r"at most 7, .*divisible by 8 = 1 × 4 × 1 × 2 .*; give fewer devices"
    assert_refused(why, make_plan, Batching(8, accumulate=2), 4, 7)


def test_a_rate_of_another_batch_size_is_told_unless_it_is_changed_too(dry_run):
    flags = "--recipe mlperf-v1.0-resnet50-lars-8192 --batch-size 512"
    told = "note: learning_rate=17 belongs to batch_size=8192, but batch_size is 512"
    assert told in dry_run(flags)
    assert "belongs to" not in dry_run(f"{flags} --learning-rate 4.25")


BATCHES = {"alexnet_small": 256, "alexnet_bn_small": 16}


@pytest.mark.parametrize(("network", "batch"), BATCHES.items())
def test_the_memory_told_is_what_xla_allots(network, batch):
    """Within a third, as the text says.

    The estimate counts all that differentiation keeps and none of what a layer needs
    in passing; XLA recomputes some of the one and allots the other.
    """
    mnist, devices = load("mnist"), jax.local_devices()[:1]
    config = parse(f"--network {network} --batch-size {batch}".split())
    experiment = Experiment(config, mnist, devices)
    step = partial(train_step, model=experiment.model, tx=experiment.tx, axis_name=None)
    inputs = experiment.shapes, experiment.batch(0, 0)
    compiled = jax.jit(step, donate_argnums=0).lower(*inputs).compile()
    found = compiled.memory_analysis()
    allotted = found.argument_size_in_bytes + found.output_size_in_bytes
    allotted += found.temp_size_in_bytes - found.alias_size_in_bytes
    assert 0.67 < gibibytes("\n".join(describe(experiment))) * 2**30 / allotted < 1.5


def test_the_memory_told_is_what_a_full_size_step_was_measured_to_take(dry_run):
    """Within a third of the peaks of whole processes, less JAX's own 0.3 GiB."""
    results = json.loads((ROOT / "benchmarks/results/one_step.json").read_text())
    for network, measured in results["networks"].items():
        text = dry_run(f"--network {network} --batch-size {measured['batch_size']}")
        found = gibibytes(text) / (measured["peak_memory_gib"] - 0.3)
        assert 0.67 < found < 1.5, network
