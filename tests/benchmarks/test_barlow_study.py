"""Law: the study of Barlow Twins chooses by validation, and runs as the example."""

from functools import partial

import jax
import numpy as np
import pytest
from image_trees import write_idx_folder
from small_runs import ROOT

if not hasattr(jax, "shard_map"):
    reason = "the example uses jax.shard_map, which jax has since 0.6.1"
    pytest.skip(reason, allow_module_level=True)

from benchmarks.results import NOT_RUN, read
from benchmarks.study import barlow_twins as study
from examples import barlow_twins as example
from examples.imagenet.data.arrays import Split


def made(job, validation, test=0.5):
    return job._asdict() | {"validation": validation, "test": test, "test_images": 100}


def complete(best):
    """Every run, of which the trials at the rates of `best` are the best ones."""
    records = []
    while jobs := study.missing(records):
        job = jobs[0]
        rate, best_rate = job.learning_rate or 1.0, best.get(job.features, 1.0)
        records.append(made(job, 0.9 - abs(np.log(rate / best_rate))))
    return records


@pytest.mark.parametrize("rate", study.RATES["LARS"])
def test_final_runs_have_the_rate_of_the_best_trial(rate):
    records = complete({"LARS": rate, "SGD": 0.01})
    assert study.chosen("LARS", records) == rate
    assert study.chosen("SGD", records) == 0.01
    assert {job.learning_rate for job in study.finals("LARS", records)} == {rate}
    assert {job.seed for job in study.finals("LARS", records)} == set(study.SEEDS)
    assert study.TRIAL_SEED not in study.SEEDS


def test_final_runs_wait_for_every_trial_and_no_run_is_made_twice():
    jobs = study.missing([])
    trials = jobs[:6]
    assert trials == study.trials("LARS")
    assert [job for job in jobs if job.features == "LARS" and job.seed in study.SEEDS
            and job.data == "digits"] == []  # fmt: skip
    records = [made(job, 0.5) for job in trials]
    assert study.missing(records)[:6] == study.trials("SGD")
    finals = [job for job in study.missing(records) if job not in jobs]
    assert finals == study.finals("LARS", records)
    assert {job.learning_rate for job in finals} == {0.2}  # the lowest of equal ones
    everything = complete({})
    keys = [tuple(record.values())[:4] for record in everything]
    assert len(set(keys)) == len(keys)


def test_a_run_of_the_study_is_one_of_the_example(monkeypatch, tmp_path, capsys):
    """On images of 12 × 12 pixels that are bright in one of two halves."""
    random = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 2
        images = random.integers(0, 200, (n, 12, 12, 1))
        images[labels == 1, :6] += 20
        return Split(np.uint8(images), np.int32(labels))

    folder = write_idx_folder(tmp_path, train=split(96), t10k=split(32))
    small = {"projections": 6, "channels": (4,)}
    monkeypatch.setattr(example, "Network", partial(example.Network, **small))
    flags = ["--data", str(folder), "--validation-images", "32", "--seeds", "1"]
    rows = example.main(["--batch-size", "32", "--epochs", "3", "--compare", *flags])
    losses = capsys.readouterr().out
    config = example.Config(
        data=str(folder), validation_images=32, batch_size=32, epochs=3
    )
    task = study.read_task(config)
    rates = {"LARS": config.lars_rate, "SGD": config.sgd_rate}
    for name, row in rows.items():
        record = study.run(study.Job("digits", name, rates.get(name, 0.0), 1), task)
        assert [(record["validation"], record["test"])] == row, name
        assert record["test_images"] == 32
        if name in rates:
            assert record["updates"] == 6
            assert f"{name}, seed 1: last loss {record['loss']:.1f}," in losses


def test_the_tables_have_the_best_trials_in_bold_and_what_is_missing():
    everything = complete({"LARS": 6.0, "SGD": 0.01})
    text = study.trial_table(everything)
    assert text.count("**90.0**") == text.count("**") // 2 == 2
    assert "| 6 | **90.0** |" in text
    assert "| 0.01 | **90.0** |" in text
    some = [r for r in everything if r["features"] != "SGD"]
    assert study.trial_table(some).count("not run") == 6
    assert "**" not in study.trial_table(some[1:])
    assert study.accuracy_table(some).count("\n| ") == 4  # a header and three rows
    assert "| SGD |" not in study.accuracy_table(some)
    assert study.difference_table(some).count("\n| ") == 3
    assert study.difference_table([]) == study.accuracy_table([]) == NOT_RUN
    assert study.fashion_table([]).count("not run") == 4


def test_a_difference_has_the_standard_errors_of_both_rows():
    # 50 of 100 images: a standard error of 0.05. Seeds of LARS: 0.02/√3.
    records = complete({})
    for record in records:
        if record["features"] == "LARS" and record["data"] == "digits":
            record["test"] = 0.5 + 0.02 * (record["seed"] - 1)
    errors = study.errors_of(study.accuracies(records)["LARS"])
    np.testing.assert_allclose(errors, (0.02 / 3**0.5, 0.05))
    both = 100 * (2 * 0.05**2 + 0.02**2 / 3) ** 0.5
    for name in ("raw pixels", "untrained encoder", "SGD"):
        assert f"| {name} | 0.0 | {both:.1f} |" in study.difference_table(records)


def test_the_defaults_of_the_example_are_the_rates_that_the_results_choose(monkeypatch):
    monkeypatch.chdir(ROOT)
    records, config = read(study.FILE), example.Config()
    chosen = {name: study.chosen(name, records) for name in study.RATES}
    assert chosen == {"LARS": config.lars_rate, "SGD": config.sgd_rate}
    assert study.missing(records) == []
