"""Law: the default of `fallback_ratio` is what the rule makes of the kept results."""

import inspect

import pytest
from small_runs import ROOT

import lars_optax
from benchmarks.results import read
from benchmarks.study import default_ratio as study
from benchmarks.study.runs import STUDY_FILE, Runs


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def default_of(function):
    return inspect.signature(function).parameters["fallback_ratio"].default


def test_every_function_has_the_default_that_the_rule_chooses():
    candidates, runs = study.finalists(study.screening()), Runs(read(STUDY_FILE))
    assert all(map(runs.of, study.jobs(candidates)))
    chosen = float(study.choose(study.final(runs, candidates), candidates))
    functions = lars_optax.lars, lars_optax.scale_by_lars, lars_optax.layer_stats
    for function in (*functions, lars_optax.recipes.Recipe):
        assert default_of(function) == chosen
    assert default_of(lars_optax.larc) == 1.0  # there it is plain SGD


@pytest.mark.parametrize("network", ["without normalisation", "LayerNorm"])
@pytest.mark.parametrize("rate", [10, 20, 40])
def test_the_default_is_near_optax_lars_on_dense_networks(network, rate):
    found = study.screening()[f"dense, {network}, γ = {rate}"]
    ratio = f"{default_of(lars_optax.lars):g}"
    assert len(found[ratio]) == len(found["optax.lars"]) == 8
    means = [sum(found[name]) / 8 for name in (ratio, "optax.lars")]
    assert means[0] >= means[1] - 0.015


def scores(*settings):
    """Each setting: accuracies of 0.02 and of 0.005, two seeds each."""
    names = ("0.02", "0.005")
    pairs = (dict(zip(names, pair, strict=True)) for pair in settings)
    return dict(enumerate(pairs))


def test_a_shortfall_is_the_largest_distance_below_the_best_of_a_setting():
    some = scores(([0.9, 0.9], [0.8, 0.9]), ([0.7, 0.7], [0.7, 0.76]))
    found = study.shortfalls(some, ("0.02", "0.005"))
    assert found == pytest.approx({"0.02": 0.03, "0.005": 0.05})


def test_the_rule_prefers_0_02_within_one_standard_error_alone():
    # Seeds apart by 0.02: a variance of 2e-4, and a standard error of √(2 · 2e-4 / 2).
    near = scores(([0.89, 0.91], [0.90, 0.92]))
    assert study.standard_error(near, ("0.02", "0.005")) == pytest.approx(2e-4**0.5)
    assert study.choose(near, ("0.02", "0.005")) == "0.02"  # 0.01 apart
    far = scores(([0.89, 0.91], [0.91, 0.93]))
    assert study.choose(far, ("0.02", "0.005")) == "0.005"  # 0.02 apart


def test_a_screening_that_is_not_complete_has_no_summary(monkeypatch):
    for scores in ({}, {"setting": {"0.02": [0.9]}}):
        monkeypatch.setattr(study, "screening", lambda scores=scores: scores)
        for text in (study.summary([]), study.final_table([])):
            assert text == "The runs of the screening are not complete.\n"


def test_the_finalists_are_0_02_and_the_best_two_others():
    means = dict(zip(study.RATIOS, (0.5, 0.9, 0.1, 0.8, 0.7), strict=True))
    found = study.finalists({"setting": {k: [x] for k, x in means.items()}})
    assert found == ("0.1", "0.02", "0.005")
