"""The trainer's noise scale: its estimate, its cost in collectives, log and report."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import small_runs
import steps
from cases import cases
from logs import PNG_MAGIC, config, epoch, step, write
from matplotlib.figure import Figure
from test_slots import all_reduces
from trees import assert_refused

from examples.imagenet.config import Model
from examples.imagenet.data import arrays as data
from examples.imagenet.log import read_log
from examples.imagenet.report import __main__ as report
from examples.imagenet.report.figures import plot_noise_scale
from examples.imagenet.run.experiment import Experiment
from examples.imagenet.run.loop import Stopped
from examples.imagenet.step import devices as engine
from examples.imagenet.step.step import init_state

DECAY = 0.99


def gradient_of(setup, params, images, labels):
    def loss(params):
        logits = setup[0].apply({"params": params}, images, train=False)
        chosen = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
        return -chosen.mean()

    leaves = jax.tree.leaves(jax.grad(loss)(params))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(float)


def estimates(setup, params, batch, groups):
    """The estimates of one batch cut into equal groups, in float64."""
    cut = [x.reshape(groups, -1, *x.shape[1:]) for x in batch[:2]]
    grads = [gradient_of(setup, params, *part) for part in zip(*cut, strict=True)]
    B, b = len(batch.labels), len(batch.labels) // groups
    small = np.mean([np.sum(g**2) for g in grads])
    big = np.sum(np.mean(grads, 0) ** 2)
    return (small - big) / (1 / b - 1 / B), (B * big - b * small) / (B - b)


@cases("name, n, options, groups",
    devices=("pmap", 4, {}, 4),
    shard_map=("shard_map", 4, {}, 4),
    accumulated=("pmap", 1, {"accumulate": 4}, 4),
    both=("shard_map", 2, {"accumulate": 2}, 4),
    solvers=("pmap", 2, {"solvers": 2}, 2),
)  # fmt: skip
def test_the_estimates_are_those_of_each_gradient_beside_their_mean(
    name, n, options, groups, devices
):
    setup = steps.make_setup(algorithm="sgd", learning_rate=0.0)
    batches = [steps.make_batch(seed, 32) for seed in range(3)]
    fn = steps.step_of(setup, **options)
    update = engine.parallelize(fn, devices[:n], engine=name)
    first = init_state(0, *setup[:2], steps.SHAPE, noise_scale=True)
    state = engine.replicate(first, devices[:n])
    average = np.zeros(2)
    for batch in batches:
        state, metrics = update(state, batch)
        expected = np.array(estimates(setup, first.params, batch, groups))
        found = [metrics["noise"], metrics["signal"]]
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        average = DECAY * average + (1 - DECAY) * expected
        scale = average[0] / average[1]
        np.testing.assert_allclose(metrics["noise_scale"], scale, rtol=2e-3)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_scalar_joins_the_one_all_reduce(name, accumulate, devices):
    setup = steps.make_setup(steps.NORMED, algorithm="lars")
    fn = steps.step_of(setup, accumulate=accumulate)
    batch, carried = steps.make_batch(0, 32), []
    for wanted in (False, True):
        update = engine.parallelize(fn, devices, engine=name)
        state = init_state(0, *setup[:2], steps.SHAPE, noise_scale=wanted)
        placed = engine.replicate(state, devices)
        lowered = update.mapped.lower(placed, update.spread(batch))
        (reduced,) = all_reduces(lowered.compile().as_text())
        carried.append(sorted(reduced))
    assert carried[1] == sorted([*carried[0], 4])


def small_experiment(n, *, model=None, classes=10, **batching):
    settings = small_runs.config()
    batching = replace(settings.batching, noise_scale=True, **batching)
    settings = replace(settings, batching=batching, model=model or settings.model)
    parts = (small_runs.split(i, k) for i, k in ((0, 128), (1, 32), (2, 32)))
    parts = (replace(part, labels=part.labels % classes) for part in parts)
    dataset = data.in_memory(*parts, classes)
    return Experiment(settings, dataset, jax.local_devices()[:n])


def test_a_run_logs_it_and_resumes_as_if_it_had_not_stopped(tmp_path):
    experiment = small_experiment(2)

    def train(name, **options):
        run = small_runs.config(out=str(tmp_path / name)).run
        small_runs.train_on(experiment, run, **options)
        return [
            r for r in read_log(tmp_path / name / "log.jsonl") if r["kind"] == "step"
        ]

    whole = train("whole")
    assert len(whole) == small_runs.UPDATES
    assert all(record["noise"] > 0 for record in whole)
    average = np.zeros(2)
    for record in whole:
        average = DECAY * average + (1 - DECAY) * np.array(
            [record["noise"], record["signal"]]
        )
        expected = average[0] / average[1]
        np.testing.assert_allclose(record["noise_scale"], expected, rtol=1e-3)
    stop = small_runs.when("step", 10, lambda: small_runs.raise_signal(15))
    with pytest.raises(Stopped):
        train("stopped", show=stop)
    assert train("stopped") == whole


def test_a_noise_scale_that_is_not_finite_ends_no_run(tmp_path):
    """With one class every gradient is 0, and noise / signal is 0 / 0."""
    run = small_runs.config(out=str(tmp_path)).run
    result = small_runs.train_on(small_experiment(2, classes=1), run)
    assert (result.updates, result.diverged) == (small_runs.UPDATES, False)
    for record in small_runs.records(tmp_path, "step"):
        found = record["noise"], record["signal"], record["noise_scale"]
        assert found == (0, 0, None)


@cases("n, options, message",
    one=(1, {}, "--noise-scale: got True; an update has one gradient; give more"),
    sync=(2, {"model": Model(network="alexnet_bn_small", width=0.25, bn="sync")},
          "--noise-scale: got True; the gradients of the devices depend on each other"),
)  # fmt: skip
def test_a_run_without_independent_gradients_is_refused(n, options, message):
    assert_refused(message, small_experiment, n, **options)


def test_synchronized_batch_norm_of_one_device_leaves_slots_independent():
    model = Model(network="alexnet_bn_small", width=0.25, bn="sync")
    assert small_experiment(1, model=model, accumulate=2).batching.noise_scale


def test_the_flag_may_not_change_on_resume(tmp_path):
    run = small_runs.config(out=str(tmp_path)).run
    small_runs.train(tmp_path)
    message = "--existing resume: .*noise-scale was False, now True"
    assert_refused(message, small_runs.train_on, small_experiment(2), run)


def test_the_report_says_what_batch_it_suggests_and_draws_it(tmp_path):
    found = [-5.0, None, 80.0, 100.0, 3000.0]
    steps_of = [step(i) | {"noise_scale": scale} for i, scale in enumerate(found)]
    folder = write(tmp_path / "run", config(), *steps_of, epoch(1, 0.5, 5))
    report.main([folder, "--out", str(tmp_path / "out")])
    page = (tmp_path / "out/report.md").read_text()
    assert "the median of the gradient noise scale is 100 images" in page
    assert "At 1 of 4 updates the estimate is not positive" in page
    assert "![noise-scale-run](noise-scale-run.png)" in page
    picture = (tmp_path / "out/noise-scale-run.png").read_bytes()
    assert picture.startswith(PNG_MAGIC)


def test_the_report_of_estimates_that_cannot_be_drawn(tmp_path):
    """None is positive, or all are beyond float32, as in a damaged log."""
    for name, found in (("none", [-5.0, None, 0.0]), ("huge", [1e300, 1e299])):
        steps_of = [step(i) | {"noise_scale": scale} for i, scale in enumerate(found)]
        asked = config(noise_scale=True)
        folder, out = write(tmp_path / name, asked, *steps_of), tmp_path / "out"
        report.main([folder, "--out", str(out)])
        page = (out / "report.md").read_text()
        none = "none: no estimate of the gradient noise scale is positive." in page
        assert none == (name == "none")
        assert (out / f"noise-scale-{name}.png").exists() == (name == "huge")


@pytest.mark.parametrize(("highest", "numbers"), [(3000, True), (30_000, False)])
def test_numbers_between_powers_of_ten_are_written_where_there_are_few(
    highest, numbers, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    plot_noise_scale([0, 1], [800, highest], 1000, "", tmp_path / "a.png")
    formatter = drawn[0].axes[0].yaxis.get_minor_formatter()
    assert formatter(2000) == ("2,000" if numbers else "")
