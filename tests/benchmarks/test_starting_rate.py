"""Law: a fit finds a known law, and noise scales are averaged over epochs."""

import numpy as np
import pytest
from logs import step
from small_runs import ROOT

from benchmarks.results import read
from benchmarks.study import noise_scale, starting_rate
from benchmarks.study.protocol import DATA, Cell
from benchmarks.study.runs import STUDY_FILE
from lars_optax import recipes, suggested_learning_rate


def test_a_fit_finds_the_powers_of_a_known_law():
    sizes = [(512, 9000), (512, 70), (4096, 300), (65_536, 1800)]
    rows = [starting_rate.Row("", b, t, 0.3 * b**0.4 / t**0.7) for b, t in sizes]
    found, ratios = starting_rate.fit(rows, *starting_rate.FITS["B and T"])
    np.testing.assert_allclose(found, [np.log(0.3), 0.4, -0.7])
    np.testing.assert_allclose(ratios, 1)
    _, ratios = starting_rate.fit(rows, *starting_rate.FITS["B"])
    assert ratios.min() < 0.7
    assert ratios.max() > 1.4


def test_the_suggested_rate_is_within_a_factor_of_two_of_every_published_one():
    rows = starting_rate.published()
    assert len(rows) == 29
    for row in rows:
        rate = suggested_learning_rate(row.batch_size, row.updates)
        assert 0.5 < 100 * row.relative_change / rate < 2, row


def test_the_rows_of_the_rule_have_the_sizes_that_its_docstring_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = starting_rate.published() + starting_rate.tuned(read(STUDY_FILE))
    assert len(rows) == 35
    sizes, updates = ([row[i] for row in rows] for i in (1, 2))
    assert (min(sizes), max(sizes)) == (128, 67_840)
    assert (min(updates), max(updates)) == (201, 250_228)
    for recipe in map(recipes.get, (row.name for row in starting_rate.published())):
        assert (recipe.warmup, recipe.decay, recipe.power) == (
            "linear",
            "polynomial",
            2,
        )


def test_the_suggested_rate_is_above_that_of_every_self_supervised_recipe():
    ratios = []
    for recipe in map(recipes.get, recipes.names()):
        if recipe.decay == "cosine":
            updates = recipe.step_counts(starting_rate.IMAGENET)[1]
            suggested = suggested_learning_rate(recipe.batch_size, updates)
            assert (recipe.trust_coefficient, recipe.momentum) == (0.001, 0.9)
            ratios.append(recipe.learning_rate / suggested)
    assert len(ratios) == 14
    assert (round(min(ratios), 2), round(max(ratios), 2)) == (0.15, 0.84)


def test_a_rate_whose_trial_diverged_is_not_one_that_was_not_run():
    cell = Cell(DATA, "alexnet_small", 512, "lars-around")
    trial, run = cell._asdict(), {"seed": 1, "epochs": 30}
    half = run | {"learning_rate": 6.0, "split": "test", "accuracy": 0.9}
    twice = run | {"learning_rate": 24.0, "split": "validation", "accuracy": 0.1}
    records = [
        trial | half | {"diverged": False},
        trial | twice | {"diverged": True},
    ]
    first = starting_rate.results(records).splitlines()[2]
    assert first.split(" | ")[3:7] == [
        "12: not run",
        "90.0\N{NO-BREAK SPACE}%",
        "diverged",
        "not run",
    ]


def test_noise_and_signal_are_averaged_over_each_epoch():
    records = [(0.0, 1.0, 4.0), (0.5, 3.0, 2.0), (1.0, 5.0, 1.0)]
    log = [
        step(i) | {"epoch": epoch, "noise": noise, "signal": signal}
        for i, (epoch, noise, signal) in enumerate(records)
    ]
    assert noise_scale.by_epoch(log) == [
        {"epoch": 1, "noise": 2.0, "signal": 3.0},
        {"epoch": 2, "noise": 5.0, "signal": 1.0},
    ]


def test_an_epoch_whose_signal_is_not_positive_has_no_noise_scale():
    epochs = [
        {"epoch": i, "noise": 2.0, "signal": signal}
        for i, signal in enumerate((0.5, 0.0, -0.1))
    ]
    assert noise_scale.scales({"epochs": {"a": epochs}}, "a") == {0: 4.0}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({128: 0.92, 512: 0.915, 2048: 0.90}, (512, 2048)),
        ({128: 0.92, 512: 0.90, 2048: 0.915}, (128, 512)),
        ({2048: 0.90, 512: 0.905}, (0, 512)),
        ({2048: 0.92, 512: 0.91}, (2048, np.inf)),
    ],
)
def test_an_optimizer_begins_to_lose_between_two_batch_sizes(scores, expected):
    assert noise_scale.begins_to_lose(scores, 0.91) == expected
