"""Law: the learning rates and the numbers of updates are those of the sources."""

import jax
import numpy as np
import pytest
from trees import assert_refused

from lars_optax import recipes

IMAGENET = 1_281_167
MLPERF = recipes.get("mlperf-v1.0-resnet50-lars-8192")
GOYAL = recipes.get("goyal-resnet50-sgd-8192")


# The decay steps that the logs and the RCPs of MLPerf state.
DECAY_STEPS = {
    "v0.6-resnet50-lars-4096": 20974, "v0.6-resnet50-lars-16384": 5245,
    "v0.6-resnet50-lars-32768": 2007, "v0.6-resnet50-lars-32768-33": 2007,
    "v0.7-resnet50-lars-2048": 22530, "v0.7-resnet50-lars-2496": 17956,
    "v0.7-resnet50-lars-4096": 12169, "v0.7-resnet50-lars-8192": 6720,
    "v0.7-resnet50-lars-65536": 1133, "v0.7-resnet50-lars-65536-jax": 1166.25,
    "v1.0-resnet50-lars-8192": 6095, "v1.0-resnet50-lars-32768": 1653,
    "v1.0-resnet50-lars-55296": 1190, "rcp-resnet50-lars-1632": 27476,
    "rcp-resnet50-lars-4096": 13137, "rcp-resnet50-lars-8192": 6095,
    "rcp-resnet50-lars-65536": 1133, "rcp-resnet50-lars-67840": 1133,
}  # fmt: skip
STEPS_PER_EPOCH = {  # where they are not images / batch size
    "v0.7-resnet50-lars-2496": 513, "v0.7-resnet50-lars-4096": 312,
    "v0.7-resnet50-lars-65536-jax": 19.75,
}  # fmt: skip
# These RCPs converge shortly before their decay steps, so these are the whole run.
WHOLE_RUN = {3264: 14523, 13056: 4710, 32768: 2267, 49152: 1846, 58880: 1785}


@pytest.mark.parametrize("name", DECAY_STEPS)
def test_the_logged_decay_steps_of_mlperf_are_those_of_the_schedule(name):
    recipe = recipes.get(f"mlperf-{name}")
    warmup, total = recipe.step_counts(IMAGENET)
    per_epoch = STEPS_PER_EPOCH.get(name, IMAGENET / recipe.batch_size)
    assert abs(recipe.warmup_epochs * per_epoch - warmup) < 1
    middle = (warmup + total) // 2
    rates = recipe.schedule(IMAGENET)(np.array([warmup, middle]))
    # rate = end + (peak − end) · left², and `left` falls by 1 in all decay steps.
    first, later = np.sqrt((np.float64(rates) - 1e-4) / (recipe.learning_rate - 1e-4))
    np.testing.assert_allclose(first, 1.0, rtol=1e-6)
    decay_steps = (middle - warmup) / (first - later)
    # The log of JAX's submission has a fraction, of which the schedule has no part.
    np.testing.assert_allclose(decay_steps, np.floor(DECAY_STEPS[name]), atol=0.1)


def test_decay_steps_of_the_whole_run_are_its_length_and_no_row_is_left_out():
    for batch, steps in WHOLE_RUN.items():
        recipe = recipes.get(f"mlperf-rcp-resnet50-lars-{batch}")
        assert recipe.step_counts(IMAGENET)[1] == steps
    assert len(DECAY_STEPS) + len(WHOLE_RUN) == len(recipes.names("mlperf"))


# Updates of an epoch, warm-up and all updates, as the sources' loaders and code count.
COUNTED = {
    "barlow-twins-resnet50-lars-2048": (6260, 626_000),
    "vicreg-resnet50-lars-512": (25_030, 250_300),
    "byol-resnet50-lars-4096-40-epochs": (3127, 12_511),
    "byol-resnet50-lars-4096-1000-epochs": (3127, 312_784),
    "simclr-resnet50-lars-4096-sqrt": (3127, 31_279),
    "moco-v3-resnet50-lars-4096-300-epochs": (3120, 93_600),
    "swav-resnet50-lars-4096": (3120, 249_600),
    "mae-vit_base_patch16-lars-16384": (780, 7020),
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_cosine_follows_the_formula_of_its_source(name):
    recipe, (warmup, total) = recipes.get(name), COUNTED[name]
    assert recipe.step_counts(IMAGENET) == (warmup, total)
    peak, end = recipe.learning_rate, recipe.end_learning_rate
    start = 0.3 if name.startswith("swav") else 0.0
    steps = np.array([0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1])
    rising = start + (peak - start) * steps / warmup
    cosine = 0.5 * (1 + np.cos(np.pi * (steps - warmup) / (total - warmup)))
    expected = np.where(steps < warmup, rising, peak * cosine + end * (1 - cosine))
    found = jax.vmap(recipe.schedule(IMAGENET))(steps)
    # Near 0 the formula itself has a rounding error of 1e-16 of the peak.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-12)


def test_paper_schedule_is_the_authors_solver():
    recipe = recipes.get("paper-t5-alexnet_bn-lars-4096").replace(warmup_start=1.0)
    rate, steps = recipe.schedule(IMAGENET), round(100 * IMAGENET / 4096)
    warmup = round(2 * IMAGENET / 4096)
    np.testing.assert_allclose(rate(0), 1.0)
    np.testing.assert_allclose(rate(warmup), 10 * (1 - warmup / steps) ** 2, rtol=1e-6)
    assert float(rate(warmup - 1)) > 9.98  # and falls by (1 − 2/100)² at the knot
    assert float(rate(steps)) == 0.0


def test_mlperf_schedule_joins_and_outlasts_the_run_by_one_step():
    rate = recipes.get("mlperf-v1.0-resnet50-lars-32768").schedule(IMAGENET)
    steps, warmup = 2355, 703  # of the log, not 60 and 18 epochs
    np.testing.assert_allclose(rate(warmup), 29.0, rtol=1e-6)
    left = 1 / (steps - warmup + 1)
    expected = 1e-4 + (29 - 1e-4) * left**2
    np.testing.assert_allclose(rate(steps), expected, rtol=1e-5)


def test_goyal_divides_by_ten_at_30_60_and_80():
    rate = GOYAL.schedule(IMAGENET)
    for epoch, expected in [(5, 3.2), (29, 3.2), (31, 0.32), (61, 0.032), (81, 0.0032)]:
        np.testing.assert_allclose(rate(round(epoch * IMAGENET / 8192)), expected, 1e-5)


def test_steps_hold_for_their_own_batch_size_and_examples_alone():
    assert MLPERF.step_counts(IMAGENET) == (781, 6875)
    assert MLPERF.step_counts(50_000) == (31, 269)  # 5 and 44 epochs
    smaller = MLPERF.replace(batch_size=4096)
    assert smaller.step_counts(IMAGENET) == (1564, 13763)
    assert smaller.replace(batch_size=8192).step_counts(IMAGENET) == (781, 6875)
    for field in ({"epochs": 44}, {"warmup_epochs": 5}, {"steps": None}):
        assert MLPERF.replace(**field).step_counts(IMAGENET) == (782, 6881)
    mine = recipes.Steps(warmup=3, total=9, batch_size=8192, num_examples=50_000)
    assert MLPERF.replace(steps=mine).step_counts(50_000) == (3, 9)


def test_boundaries_that_fall_on_one_step_multiply():
    # Of 160 images, 30 and 60 epochs are both one step.
    rate = GOYAL.replace(warmup_epochs=0).schedule(160)
    assert [round(float(rate(t)), 4) for t in range(3)] == [3.2, 0.032, 0.0032]


def test_a_constant_warm_up_keeps_its_start():
    recipe = MLPERF.replace(warmup="constant", warmup_start=2.0)
    rate = recipe.schedule(IMAGENET)
    assert [float(rate(t)) for t in (0, 780, 781)] == [2.0, 2.0, 17.0]


def test_too_few_examples_for_a_step_are_named():
    message = r"num_examples=3 .* round to 0 steps\. Give more"
    assert_refused(message, MLPERF.schedule, 3)


@pytest.mark.parametrize(("name", "fields", "message"), [
    ("mlperf-v1.0-resnet50-lars-8192", {"epochs": 2},
     r"warmup_epochs=5 .* \(epochs=2, .*\). Change warmup_epochs or epochs"),
    ("mlperf-v1.0-resnet50-lars-8192", {"batch_size": 512, "epochs": 2},
     r"5 lasts 12511 steps, but the run's end is at step 5005 \(epochs=2"),
    ("paper-t1-resnet50-sgd-256", {"warmup_epochs": 89.9999, "warmup_start": 0},
     r"=89.9999 lasts 450410 steps, but the run's end is at step 450410"),
    ("goyal-resnet50-sgd-8192", {"boundaries": (), "warmup_epochs": 200},
     r"warmup_epochs=200 .* the run's end is at step .* \(epochs=90"),
    ("mlperf-v1.0-resnet50-lars-8192", {"epochs": 5},
     r"warmup_epochs=5 .* the run's end is at step .* \(epochs=5"),
    ("goyal-resnet50-sgd-8192", {"warmup_epochs": 40},
     r"warmup_epochs=40 .* first boundary is at step 4692 \(boundaries=\(30,"),
])  # fmt: skip
def test_a_warm_up_too_long_names_the_fields_of_the_recipe(name, fields, message):
    schedule = recipes.get(name).replace(**fields).schedule
    assert_refused(f"{name}: .*{message}", schedule, IMAGENET)
