"""Law: the study and its ablations follow the protocol, and a row can be run again."""

from dataclasses import replace
from itertools import permutations
from statistics import mean, stdev

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from small_runs import ROOT
from trees import assert_equal, assert_refused, each_step

import lars_optax
from benchmarks import results
from benchmarks.study import (
    ablations,
    default_ratio,
    large_batches,
    page,
    protocol,
    starting_rate,
    train,
)
from benchmarks.study.ablations import ABLATIONS
from benchmarks.study.protocol import FINAL, METHODS, cells
from benchmarks.study.runs import (
    ABLATIONS_FILE,
    STUDY_FILE,
    Job,
    Runs,
    missing,
    remaining,
)
from benchmarks.study.train import Place
from examples.imagenet.plan import make_plan
from examples.imagenet.recipe import to_recipe

PARAMS = {"kernel": jnp.full((3, 3), 0.5), "bias": jnp.full(3, 0.1)}


def cell_of(method):
    return next(cell for cell in cells() if cell.method == method)


def run_all(score):
    """Every run of the study, each with the accuracy that `score` gives it."""
    runs = Runs([])
    for cell in cells():
        while jobs := missing(runs, cell):
            accuracy = score(jobs[0])
            result = {"accuracy": accuracy, "diverged": accuracy == 0, "seconds": 1.0}
            runs.records.append(jobs[0].key | result)
    return runs


def peak(job):
    """Best near a rate that grows with the square root of the batch; 0 above it."""
    method = job.cell.method.removesuffix("-long")
    best = {"sgd": 0.011, "nesterov": 0.3}.get(method, 7.0)
    distance = np.log(job.rate / best / np.sqrt(job.cell.batch))
    return 0.0 if distance > 3 else 0.9 - abs(distance) / 100 + job.seed / 1000


def test_every_final_run_has_the_best_of_its_trials_and_no_best_is_at_an_end():
    runs = run_all(peak)
    assert len({str(sorted(r.items())) for r in runs.records}) == len(runs.records)
    for cell in cells():
        tried = runs.tried(cell)
        final = runs.final(cell)
        mine = cell._asdict() | {"split": "test"}
        own = [r for r in runs.records if mine.items() <= r.items()]
        assert own in ([], final)  # none, where another row has them
        assert [r["seed"] for r in final] == list(cell.final.seeds)
        (rate,) = {r["learning_rate"] for r in final}
        if cell.method in ("linear", "lars-sqrt"):
            small = cell._replace(batch=protocol.SMALL[cell.data], method="sgd")
            large = cell._replace(batch=8192, method="lars")
            base, power = (small, 1.0) if cell.method == "linear" else (large, 0.5)
            assert not tried
            share = (cell.batch / base.batch) ** power
            assert rate == runs.final(base)[0]["learning_rate"] * share
            continue
        if cell.method in ("lars-suggested", "lars-suggested-90"):
            assert not tried
            updates = cell.final.epochs * 55_000 / cell.batch
            suggested = min(19 * (cell.batch / updates) ** 0.25, 40)
            assert rate == pytest.approx(suggested, rel=0.01)
            continue
        if cell.batch in (protocol.SMALL[cell.data], protocol.TUNED[cell.data]):
            assert len(tried) >= METHODS[cell.method].rates
        assert {r["split"] for r in tried} == {"validation"}
        assert rate == max(tried, key=lambda r: r["accuracy"])["learning_rate"]
        rates = [r["learning_rate"] for r in tried]
        assert rates[0] < rate < rates[-1]
        np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), 2)
    assert remaining(runs, cells()) == []
    # Where tuning finds the rate of the square-root rule, the runs are the same.
    ends = {r["batch"] for r in runs.records if r["split"] == "test"
            and r["method"] == "lars"}  # fmt: skip
    assert not {2048, 16_384} & ends


def test_a_run_that_diverged_is_never_the_best():
    cell = cell_of("lars")
    rates = cell.rates(lambda _: None)
    jobs = [Job(cell, rate, protocol.TUNING, 0) for rate in rates]
    records = [job.key | {"accuracy": 0.5 + i / 100, "diverged": i > 3}
               for i, job in enumerate(jobs)]  # fmt: skip
    assert Runs(records).trials(cell) == (list(rates), rates[3])
    assert missing(Runs(records[1:]), cell) == jobs[:1]  # final runs wait for it


def test_runs_of_other_seeds_are_no_trials():
    cell = cell_of("lars-long")
    jobs = [Job(cell, 20.0, cell.tuning, seed) for seed in (0, 1)]
    records = [job.key | {"accuracy": 0.5, "diverged": False} for job in jobs]
    assert Runs(records).tried(cell) == records[:1]


def test_what_is_to_come_shrinks_with_every_run():
    some = [cell for cell in cells() if cell.data == "digits"]
    number = sum(len(cell.rates(lambda _: 1.0)) + len(FINAL.seeds) for cell in some)
    assert len(remaining(Runs([]), some)) == number
    first = missing(Runs([]), some[0])[0]
    done = Runs([first.key | {"accuracy": 0.5, "diverged": False, "seconds": 1.0}])
    assert len(remaining(done, some)) == number - 1


def test_data_that_are_not_there_are_told_before_the_first_run(monkeypatch):
    monkeypatch.setattr(large_batches, "run_missing", None)
    some = [cell for cell in cells() if cell.data in ("digits", "cifar10")]
    message = "--cifar10: '' is no folder"
    assert_refused(message, large_batches.study, some, 1, Place())


def test_a_text_that_is_in_no_name_of_a_row_is_refused_beside_others():
    message = "--only: no row's name contains 'lars-suggested/'; --list prints"
    with pytest.raises(SystemExit, match=message):
        large_batches.main(Place(), only=("around", "lars-suggested/"), show=True)


@pytest.mark.parametrize("devices", range(1, 9))
def test_every_batch_divides_into_parts_of_512_images_at_most(devices):
    for cell in cells():
        batching = cell.config("mnist", 1.0, FINAL, devices).batching
        assert batching.devices <= devices
        plan = make_plan(batching, batching.devices, 55_000, 1)
        assert plan.images_per_slot * plan.accumulate * batching.devices == cell.batch
        images = {16: 16, 32: 32, 128: 128, 1600: 400}.get(cell.batch, 512)
        assert plan.images_per_slot == images


# Methods that differ only in how their learning rate is chosen.
SHARED = {
    "linear": "sgd",
    "lars-sqrt": "lars",
    "lars-suggested": "lars",
    "lars-around": "lars",
    "baseline-90": "sgd-90",
    "lars-suggested-90": "lars-90",
}


def test_every_method_trains_with_an_optimizer_of_its_own():
    grads, seen = {"kernel": jnp.eye(3), "bias": jnp.arange(3.0)}, {}
    for name, method in METHODS.items():
        config = cells()[0]._replace(method=name).config("mnist", 1e3, FINAL, 1)
        tx = method.make(to_recipe(config), 55_000)
        # The rate starts at 0.
        *_, (updates, _) = each_step(tx, [grads] * 3, PARAMS)
        seen[name] = ravel_pytree(updates)[0]
    same = {name: name.removesuffix("-long") for name in protocol.TUNED_LONG}
    for name, other in (same | SHARED).items():
        np.testing.assert_array_equal(seen.pop(name), seen[other])
    assert_all_differ(seen, 1e-4)


def assert_all_differ(updates, share):
    """Any two differ by more than this share of their largest element."""
    for mine, yours in permutations(updates.values(), 2):
        assert np.abs(mine - yours).max() > share * np.abs(mine).max()


def test_every_variant_of_an_ablation_trains_with_an_optimizer_of_its_own():
    cell = protocol.Cell("digits", "alexnet_small", 1600, "lars")
    config = cell.config("mnist", 1.0, protocol.ABLATION, 1)
    grown = [0.01 * i for i in range(1, 13)]  # small, so that the decay is to be seen
    # Two more than the study's warm-up.
    grads = [{"kernel": jnp.eye(3) * x, "bias": jnp.arange(3.0) * x} for x in grown]
    seen = {}
    for variants in ABLATIONS.values():
        for variant in variants:
            optimizer = replace(variant.optimizer, learning_rate=50.0)
            recipe = to_recipe(replace(config, optimizer=optimizer))
            steps = each_step(recipe.optimizer(3200), grads, PARAMS)
            found = ravel_pytree([updates for updates, _ in steps])
            seen[*variant.key.values()] = found[0]
    assert len(seen) == 1 + sum(len(variants) - 1 for variants in ABLATIONS.values())
    assert_all_differ(seen, 1e-5)


def test_lars_of_weights_is_lars_with_its_defaults_a_schedule_and_decay():
    recipe = to_recipe(cells()[0]._replace(method="lars").config("mnist", 40, FINAL, 1))
    kernels = [jnp.eye(3), jnp.zeros((3, 3)), -jnp.eye(3)] * 300
    grads = [{"kernel": kernel, "bias": kernel[0]} for kernel in kernels]

    def updates(tx):
        tx = optax.GradientTransformation(tx.init, jax.jit(tx.update))
        return [updates for updates, _ in each_step(tx, grads, PARAMS)]

    lars = lars_optax.lars(recipe.schedule(3200), 5e-4)
    assert_equal(updates(METHODS["lars"].make(recipe, 3200)), updates(lars))


def test_the_cheapest_row_comes_out_again(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(large_batches, "OUT", tmp_path)
    (new,), old = large_batches.again("digits/alexnet_small/1600/lars-all", 1, Place())
    # Other devices and versions round otherwise, which is as good as another seed.
    assert new == pytest.approx(mean(old), abs=max(4 * stdev(old), 0.01))


def test_a_trial_that_is_a_final_run_too_has_both_records(monkeypatch, tmp_path):
    epochs = 2
    short = METHODS["lars-90"]._replace(
        tuning=protocol.WHOLE._replace(epochs=epochs),
        final=protocol.WHOLE_FINAL._replace(epochs=epochs),
    )
    monkeypatch.setitem(METHODS, "lars-90", short)
    monkeypatch.setattr(train, "OUT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    cell = protocol.Cell("digits", "alexnet_bn_small", 1600, "lars-90")
    job = Job(cell, 10.0, cell.tuning, 1)
    trial = train.run(job, Place(devices=1), {}, "study.jsonl")
    runs = Runs(results.read("study.jsonl"))
    assert runs.records[0] == trial
    assert runs.tried(cell) == [trial]
    (final,) = runs.of(job._replace(stage=cell.final))
    assert (final["count"], trial["count"]) == (1000, 800)
    again = train.train(job._replace(stage=cell.final), Place(devices=1), tmp_path)
    assert final["accuracy"] == again.accuracy
    assert final["updates"] == trial["updates"] == 2 * epochs

    (tmp_path / "study.jsonl").write_text(results.strict_json(final) + "\n")
    train.run(job, Place(devices=1), {}, "study.jsonl")
    records = results.read("study.jsonl")
    assert [r["split"] for r in records] == ["test", "validation"]
    assert Runs([*records, final]).of(job._replace(stage=cell.final)) == [final]


def test_trials_that_are_runs_at_a_suggested_rate_too_come_before_these_runs():
    around, suggested = protocol.suggested()[::2], protocol.suggested()[1::2]
    for trial, run in zip(around, suggested, strict=True):
        assert trial == run._replace(method="lars-around")
        rates = trial.rates(lambda _: None)
        job = Job(trial, run.suggested_rate, trial.tuning, 1)
        assert job.rate in rates
        assert job.also_final


def test_the_rows_of_90_epochs_have_the_updates_that_their_protocol_names():
    rates = {cell.batch: cell for cell in protocol.proportions()}
    counts = {}
    for batch, cell in rates.items():
        recipe = to_recipe(cell.config("mnist", 1.0, cell.final, 1))
        counts[batch] = recipe.step_counts(55_000)
    assert counts == {16: (17_188, 309_375), 2048: (134, 2_417)}


TABLES = {
    table.name: table
    for module in (page, ablations, default_ratio, starting_rate)
    for table in module.TABLES
    if table.file in (STUDY_FILE, ABLATIONS_FILE)
}


@pytest.mark.parametrize("name", sorted(TABLES.keys() - {"protocol", "fits"}))
def test_a_table_without_runs_says_not_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = TABLES[name].make([])
    assert "not run" in text.lower()
    for figure in ("±", "| 0.0 |", "| 0.00 |"):
        assert figure not in text


@pytest.mark.parametrize("kept", ["alexnet_small", "alexnet_bn_small"])
def test_a_table_of_one_network_alone_says_that_the_other_is_not_run(kept, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("settings", "batches", "trial lengths", "ablations"):
        records = results.read(TABLES[name].file)
        text = TABLES[name].make([r for r in records if r["network"] == kept])
        assert "not run" in text
        assert "%" in text


def test_an_ablation_says_which_variants_have_not_run_with_every_seed():
    first, second = ABLATIONS["denominator"]
    runs = [
        ablations.job(variant, "alexnet_small", rate, seed)
        for variant in (first, second)
        for rate in ablations.RATES
        for seed in protocol.ABLATION.seeds
    ]
    records = [job.key | {"accuracy": 0.9} for job in runs]
    summary = ablations.summary(records).splitlines()[2]
    assert "| 2 | 90.0 to 90.0 % | not run |" in summary
    summary = ablations.summary(records[:-1]).splitlines()[2]
    assert "| 2 | 90.0 to 90.0 %, 1 not run | not run |" in summary
    assert "so far" in ablations.best_rates("denominator", records[:-1])
    axis = Figure().subplots()
    ablations.draw_rates(records[:-1], [first, second], axis, "alexnet_small")
