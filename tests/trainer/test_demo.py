"""The demo takes its rates from a sweep of its own protocol."""

import json

import numpy as np
from small_runs import ROOT
from trees import assert_refused

from examples.imagenet import demo


def test_demo_refuses_a_sweep_of_another_protocol(tmp_path):
    path = tmp_path / "sweep.json"
    protocols = {name: demo.protocol(name) for name in demo.METHODS}
    methods = {name: {"protocol": p, "best": 0.5} for name, p in protocols.items()}

    def read():
        path.write_text(json.dumps({"methods": methods}))
        return set(demo.read_rates(path).values())

    assert_refused("missing", demo.read_rates, path)
    assert read() == {0.5}
    batching = protocols["LARS, large batch"]["batching"]
    # A sweep made before a setting existed knows nothing of it.
    del batching["accumulate"]
    assert read() == {0.5}
    batching["epochs"] += 1
    assert_refused("LARS, large batch", read)


def test_committed_sweep_is_fair_and_its_best_rates_are_what_it_measured():
    methods = json.loads((ROOT / demo.SWEEP).read_text())["methods"]
    lengths = set()
    for name, best in demo.read_rates(ROOT / demo.SWEEP).items():
        scores = {}
        for run in methods[name]["runs"]:
            scores.setdefault(run["learning_rate"], []).append(run["accuracy"])
            assert run["count"] == 800
        tried = sorted(scores)
        lengths.add(len(tried))
        assert len(tried) >= 7
        assert tried[0] < best < tried[-1]
        means = {rate: np.mean(found) for rate, found in scores.items()}
        assert means[best] == max(means.values())
    assert len(lengths) == 1
