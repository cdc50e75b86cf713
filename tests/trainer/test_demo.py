"""The demo takes its rates from a sweep of its own protocol."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.imagenet import demo

ROOT = Path(__file__).parents[2]


def test_demo_refuses_a_sweep_of_another_protocol(tmp_path):
    path = tmp_path / "sweep.json"
    methods = {
        name: {"protocol": demo.protocol(name), "best": 0.5} for name in demo.METHODS
    }
    path.write_text(json.dumps({"methods": methods}))
    assert set(demo.read_rates(path).values()) == {0.5}
    # A sweep made before a setting existed knows nothing of it.
    del methods["LARS, large batch"]["protocol"]["batching"]["accumulate"]
    path.write_text(json.dumps({"methods": methods}))
    assert set(demo.read_rates(path).values()) == {0.5}
    methods["LARS, large batch"]["protocol"]["batching"]["epochs"] += 1
    path.write_text(json.dumps({"methods": methods}))
    with pytest.raises(ValueError, match="LARS, large batch"):
        demo.read_rates(path)
    with pytest.raises(ValueError, match="missing"):
        demo.read_rates(tmp_path / "absent.json")


def test_committed_sweep_is_fair_and_its_best_rates_are_what_it_measured():
    methods = json.loads((ROOT / demo.SWEEP).read_text())["methods"]
    rates = demo.read_rates(ROOT / demo.SWEEP)
    tried = {
        name: sorted({r["learning_rate"] for r in methods[name]["runs"]})
        for name in rates
    }
    assert len({len(found) for found in tried.values()}) == 1
    for name, best in rates.items():
        assert len(tried[name]) >= 7
        assert tried[name][0] < best < tried[name][-1]
        runs = methods[name]["runs"]
        score = {
            rate: np.mean([r["accuracy"] for r in runs if r["learning_rate"] == rate])
            for rate in tried[name]
        }
        assert score[best] == max(score.values())
        assert all(run["count"] == 800 for run in runs)
