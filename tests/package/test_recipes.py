"""Law: recipes hold what their tables print, and train as their authors did."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from reference import Lars
from trees import PARAMS, RECORDED, WEIGHTS, assert_equal, assert_refused, replay

import lars_optax
from lars_optax import recipes

IMAGENET = 1_281_167
MLPERF = recipes.get("mlperf-v1.0-resnet50-lars-8192")
GOYAL = recipes.get("goyal-resnet50-sgd-8192")
SHORT = {"batch_size": 100, "epochs": 4}


def test_every_row_of_every_table_is_there():
    tables = {"paper-t1": 2, "paper-t2": 13, "paper-t3": 11, "paper-t5": 3,
              "paper-t6": 3, "paper-t7": 4 + 3, "goyal": 1, "mlperf-v0.6": 4,
              "mlperf-v0.7": 6, "mlperf-v1.0": 3, "mlperf-rcp": 10, "barlow-twins": 1,
              "vicreg": 2, "byol": 4, "simclr": 2, "moco-v3": 3, "swav": 1,
              "mae": 1}  # fmt: skip
    for table, rows in tables.items():
        found = [name for name in recipes.names() if name.startswith(f"{table}-")]
        assert len(found) == rows, table
        assert recipes.names(table) == tuple(found)
    assert len(recipes.names()) == sum(tables.values())
    assert all(recipes.get(name).name == name for name in recipes.names())


# name → batch, γ, warm-up epochs, μ, β, epochs, printed accuracy; None is not printed.
PRINTED = {
    "paper-t1-resnet50-sgd-256": (256, 0.2, 0, 0.9, 1e-4, 90, 0.730),
    "paper-t1-resnet50-sgd-8192": (8192, 6.4, None, 0.9, 1e-4, 90, 0.727),
    "paper-t2-alexnet-sgd-512": (512, 0.02, 0, None, None, 100, 0.588),
    "paper-t2-alexnet-sgd-4096-0.01-no-warmup": (4096, 0.01, 0, None, None, 100, 0.001),
    "paper-t2-alexnet-sgd-4096-0.05": (4096, 0.05, 2.5, None, None, 100, 0.531),
    "paper-t2-alexnet-sgd-8192-0.03": (8192, 0.03, 6, None, None, 100, 0.448),
    "paper-t3-alexnet_bn-sgd-512": (512, 0.02, None, 0.9, 5e-4, 128, 0.602),
    "paper-t3-alexnet_bn-sgd-4096-0.18": (4096, 0.18, None, 0.9, 5e-4, 128, 0.589),
    "paper-t3-alexnet_bn-sgd-8192-0.30": (8192, 0.30, None, 0.9, 5e-4, 128, 0.580),
    "paper-t5-alexnet_bn-lars-512": (512, 5.0, 2, 0.9, 5e-4, 100, 0.602),
    "paper-t5-alexnet_bn-lars-8192": (8192, 14.0, 2, 0.9, 5e-4, 100, 0.601),
    "paper-t6-alexnet-sgd-512": (512, None, 0, 0.9, 5e-4, 100, 0.588),
    "paper-t6-alexnet-lars-4096": (4096, None, 13, 0.9, 5e-4, 100, 0.584),
    "paper-t6-alexnet-lars-8192": (8192, None, 8, 0.9, 5e-4, 100, 0.583),
    "paper-t7-resnet50-sgd-256": (256, 0.2, 0, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-8192": (8192, 6.4, 5, None, None, 90, 0.727),
    "paper-t7-resnet50-lars-16384": (16384, 2.5, 5, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-32768": (32768, 2.9, 5, None, None, 90, 0.726),
    "paper-t7-resnet50-lars-8192-corrected": (8192, 12.8, 5, None, None, 90, 0.727),
    "paper-t7-resnet50-lars-16384-corrected": (16384, 25, 5, None, None, 90, 0.730),
    "paper-t7-resnet50-lars-32768-corrected": (32768, 29, 5, None, None, 90, 0.726),
    "goyal-resnet50-sgd-8192": (8192, 3.2, 5, 0.9, 1e-4, 90, 0.7626),
    "mlperf-v0.6-resnet50-lars-4096": (4096, 10, 5, 0.9, 2e-4, 72, 0.76090),
    "mlperf-v0.6-resnet50-lars-16384": (16384, 25, 5, 0.9, 2e-4, 72, 0.76136),
    "mlperf-v0.6-resnet50-lars-32768": (32768, 31.2, 25, 0.9, 1e-4, 76, 0.76065),
    "mlperf-v0.6-resnet50-lars-32768-33": (32768, 33, 25, 0.9, 2e-4, 76, 0.76036),
    "mlperf-v0.7-resnet50-lars-2048": (2048, 8.5, 5, 0.9, 2e-4, 41, 0.76048),
    "mlperf-v0.7-resnet50-lars-2496": (2496, 9.5, 5, 0.9, 2e-4, 40, 0.75952),
    "mlperf-v0.7-resnet50-lars-4096": (4096, 13, 2, 0.9, 2e-4, 41, 0.75956),
    "mlperf-v0.7-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 48, 0.76198),
    "mlperf-v0.7-resnet50-lars-65536": (
        65536, 24.699, 31, 0.951807, 1e-4, 89, 0.76064,
    ),
    "mlperf-v0.7-resnet50-lars-65536-jax": (
        65536, 23.080977304670448, 33, 0.9537213777059405, 1e-4, 92, 0.76074,
    ),
    "mlperf-v1.0-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 44, 0.7602),
    "mlperf-v1.0-resnet50-lars-32768": (32768, 29, 18, 0.929, 1e-4, 60, 0.75944),
    "mlperf-v1.0-resnet50-lars-55296": (55296, 25.67, 29, 0.94053, 1e-4, 80, 0.7596),
    "mlperf-rcp-resnet50-lars-1632": (1632, 7.4, 2, 0.9, 5e-5, 37, None),
    "mlperf-rcp-resnet50-lars-3264": (3264, 10.5, 2, 0.9, 5e-5, 37, None),
    "mlperf-rcp-resnet50-lars-4096": (4096, 10, 5, 0.9, 2e-4, 47, None),
    "mlperf-rcp-resnet50-lars-8192": (8192, 17, 5, 0.9, 2e-4, 44, None),
    "mlperf-rcp-resnet50-lars-13056": (13056, 12.8, 9, 0.9, 2.5e-5, 48, None),
    "mlperf-rcp-resnet50-lars-32768": (32768, 21.2, 16, 0.94, 2.5e-5, 58, None),
    "mlperf-rcp-resnet50-lars-49152": (49152, 19.405, 24, 0.951807, 1e-4, 71, None),
    "mlperf-rcp-resnet50-lars-58880": (58880, 23.246, 29, 0.951807, 1e-4, 82, None),
    "mlperf-rcp-resnet50-lars-65536": (65536, 24.699, 31, 0.951807, 1e-4, 89, None),
    "mlperf-rcp-resnet50-lars-67840": (67840, 24.699, 31, 0.951807, 1e-4, 91, None),
    "barlow-twins-resnet50-lars-2048": (2048, 1.6, 10, 0.9, 1e-6, 1000, 0.735),
    "vicreg-resnet50-lars-512": (512, 0.6, 10, 0.9, 1e-6, 100, None),
    "vicreg-resnet50-lars-2048": (2048, 1.6, 10, 0.9, 1e-6, 1000, 0.732),
    "byol-resnet50-lars-4096-40-epochs": (4096, 7.2, 10, 0.9, 1e-6, 40, None),
    "byol-resnet50-lars-4096-100-epochs": (4096, 7.2, 10, 0.9, 1e-6, 100, None),
    "byol-resnet50-lars-4096-300-epochs": (4096, 4.8, 10, 0.9, 1e-6, 300, None),
    "byol-resnet50-lars-4096-1000-epochs": (4096, 3.2, 10, 0.9, 1.5e-6, 1000, None),
    "simclr-resnet50-lars-4096-linear": (4096, 4.8, 10, 0.9, 1e-6, 100, None),
    "simclr-resnet50-lars-4096-sqrt": (4096, 4.8, 10, 0.9, 1e-4, 100, 0.645),
    "moco-v3-resnet50-lars-4096-100-epochs": (4096, 9.6, 10, 0.9, 1e-6, 100, 0.689),
    "moco-v3-resnet50-lars-4096-300-epochs": (4096, 4.8, 10, 0.9, 1e-6, 300, 0.728),
    "moco-v3-resnet50-lars-4096-1000-epochs": (
        4096, 4.8, 10, 0.9, 1.5e-6, 1000, 0.746,
    ),
    "swav-resnet50-lars-4096": (4096, 4.8, 10, 0.9, 1e-6, 800, 0.753),
    "mae-vit_base_patch16-lars-16384": (16384, 6.4, 10, 0.9, 0.0, 90, 0.678),
}  # fmt: skip


@pytest.mark.parametrize("name", PRINTED)
def test_printed_values(name):
    r = recipes.get(name)
    assert PRINTED[name] == (
        r.batch_size, r.learning_rate, r.warmup_epochs, r.momentum, r.weight_decay,
        r.epochs, r.top1,
    )  # fmt: skip


def test_the_printed_values_are_those_of_all_recipes_but_some_of_the_papers():
    others = {*recipes.names()} - PRINTED.keys()
    assert {name[:8] for name in others} == {"paper-t2", "paper-t3", "paper-t5"}


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


@pytest.mark.parametrize(("name", "batch", "rate", "end"), [
    ("barlow-twins-resnet50-lars-2048", 256, 0.2, 0.0002),
    ("vicreg-resnet50-lars-512", 2048, 2.4, 0.0024),
    ("byol-resnet50-lars-4096-300-epochs", 512, 0.6, 0.0),
    ("simclr-resnet50-lars-4096-linear", 1024, 1.2, 0.0),
    ("simclr-resnet50-lars-4096-sqrt", 1024, 2.4, 0.0),  # 0.075 · √1024
    ("goyal-resnet50-sgd-8192", 256, 0.1, 0.0),
])  # fmt: skip
def test_another_batch_size_has_the_rate_of_the_sources_own_rule(
    name, batch, rate, end
):
    recipe = recipes.get(name)
    other = recipe.at_batch(batch)
    assert other.batch_size == batch
    np.testing.assert_allclose(other.learning_rate, rate, rtol=1e-12)
    np.testing.assert_allclose(other.end_learning_rate, end, rtol=1e-12)
    assert (other.notes, other.epochs) == (recipe.notes, recipe.epochs)
    assert f"{recipe.learning_rate:g} at" in other.inferred["learning_rate"]
    # A batch size that was replaced alone is not taken for that of the rate.
    assert recipe.replace(batch_size=64).at_batch(batch) == other


def test_a_source_without_a_scaling_rule_is_named():
    message = r"swav.* states no rule .*batch_size=256, learning_rate=\.\.\."
    assert_refused(message, recipes.get("swav-resnet50-lars-4096").at_batch, 256)
    assert_refused("batch_size.*0", GOYAL.at_batch, 0)
    unknown = GOYAL.replace(learning_rate=None)
    assert_refused("does not state learning_rate", unknown.at_batch, 256)


@pytest.mark.parametrize("name", recipes.names())
def test_a_gap_is_refused_by_name_and_can_be_filled(name):
    recipe = recipes.get(name)
    for field in recipe.missing():
        assert_refused(rf"{field}.*recipe\.replace", recipe.optimizer, IMAGENET)
    known = {"learning_rate": 10.0, "warmup_epochs": 5, "warmup_start": 0.1,
             "momentum": 0.9, "weight_decay": 1e-4}  # fmt: skip
    if recipe.momentum_order == "tf_contrib_1.14":
        message = r"trust ratio of the gradient.*recipe\.replace\(momentum_order="
        assert_refused(message, recipe.optimizer, IMAGENET)
        recipe = recipe.replace(momentum_order="scaled")
    filled = recipe.replace(**{field: known[field] for field in recipe.missing()})
    assert filled.missing() == ()
    schedule = filled.schedule(IMAGENET)
    _, steps = filled.step_counts(IMAGENET)
    assert abs(steps * filled.batch_size / IMAGENET / filled.epochs - 1) < 0.05
    assert 0 <= float(schedule(steps)) < 0.1 * float(schedule(steps // 3))
    filled.optimizer(IMAGENET).init({"kernel": jnp.ones((2, 2))})


def test_every_value_is_printed_inferred_or_hinted():
    for name in recipes.names():
        recipe = recipes.get(name)
        for field in recipe.missing():
            # A gap names what is known, but for Table 2's warm-up, which is printed.
            assert field in recipe.hints, (name, field)
        for field in (*recipe.inferred, *recipe.hints):
            assert hasattr(recipe, field), (name, field)
        assert not {f for f in recipe.inferred if getattr(recipe, f) is None}
    corrected = recipes.get("paper-t7-resnet50-lars-32768-corrected")
    assert "29" in corrected.inferred["learning_rate"]


def test_unknown_names_and_fields_are_refused_with_the_nearest():
    name = "paper-t7-resnet50-lars-32768"
    assert_refused(name, recipes.get, name.replace("768", "k"))
    assert_refused(r"nearest.*mlperf", recipes.get, "mlperf")
    assert_refused(r"begins with 'mlp'.*mlperf-v1\.0, .*byol", recipes.names, "mlp")
    message = r"no field \['lr'\].*learning_rate"
    assert_refused(message, recipes.get(name).replace, lr=0.1)


@pytest.mark.parametrize(("field", "value"), [
    ("algorithm", "LARS"), ("decay", "exponential"), ("momentum_order", "before"),
    ("task", "detection"), ("warmup", "cosine"), ("denominator", "both"),
    ("rate_scaling", "cubic"), ("eps", -1e-8), ("steps", (5, 40)),
    ("momentum", 1.5), ("weight_decay", -1.0), ("learning_rate", float("nan")),
    ("mask", False), ("batch_size", 0), ("batch_size", 256.0), ("epochs", 0),
    ("power", 0.0), ("end_learning_rate", -0.1), ("extra_decay_steps", 0.5),
    ("trust_coefficient", 0), ("fallback_ratio", float("inf")),
    ("label_smoothing", 1.0), ("label_smoothing", None), ("rate_batch_size", 0),
    ("boundaries", (30, -1)),
])  # fmt: skip
def test_a_bad_value_is_refused(field, value):
    recipe = recipes.get("paper-t1-resnet50-sgd-256")
    shown = value[1] if field == "boundaries" else value
    assert_refused(f"{field}.*{shown}", recipe.replace, **{field: value})


def test_a_batch_size_replaced_alone_is_told_until_the_rate_follows():
    changed = MLPERF.replace(batch_size=512)
    told = r"learning_rate=17 belongs to batch_size=8192, but batch_size is 512: .*"
    assert re.fullmatch(told, changed.notes)
    assert changed.rate_batch_size == 8192
    again = changed.replace(batch_size=1024)
    assert again.notes == changed.notes.replace("512", "1024")
    scaled = lars_optax.sqrt_scaling(17, 1024, 8192)
    both = MLPERF.replace(batch_size=1024, learning_rate=scaled)
    assert again.replace(learning_rate=scaled) == both
    assert (both.notes, both.rate_batch_size) == ("", None)
    assert changed.replace(batch_size=8192) == MLPERF


def test_a_replaced_note_has_the_note_of_the_batch_size_once():
    changed = MLPERF.replace(batch_size=512)
    mine = changed.replace(notes=changed.notes + " Mine.")
    assert mine.notes.count("belongs to") == 1
    assert mine.replace(learning_rate=4.25).notes == "Mine."


def test_boundaries_are_a_tuple():
    for value in (30, None, [30], iter((30,))):
        assert_refused("boundaries must be a tuple", GOYAL.replace, boundaries=value)


def test_too_few_examples_for_a_step_are_named():
    message = r"num_examples=3 .* round to 0 steps\. Give more"
    assert_refused(message, MLPERF.schedule, 3)


def test_the_note_of_a_batch_size_leaves_the_source_its_own():
    recipe = recipes.get("paper-t2-alexnet-sgd-512")
    changed = recipe.replace(batch_size=256).replace(epochs=3)
    assert changed.notes.startswith(f"{recipe.notes} learning_rate=0.02 belongs to")
    assert changed.replace(learning_rate=0.01).notes == recipe.notes
    unknown = recipe.replace(learning_rate=None).replace(batch_size=256)
    assert unknown.notes == recipe.notes


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


def test_a_replaced_field_loses_its_ground():
    recipe = recipes.get("paper-t7-resnet50-lars-8192")
    changed = recipe.replace(mask="exclude_bias_and_norm", momentum=0.9)
    assert "mask" in recipe.inferred
    assert "mask" not in changed.inferred
    assert "momentum" not in changed.hints


def test_boundaries_that_fall_on_one_step_multiply():
    # Of 160 images, 30 and 60 epochs are both one step.
    rate = GOYAL.replace(warmup_epochs=0).schedule(160)
    assert [round(float(rate(t)), 4) for t in range(3)] == [3.2, 0.032, 0.0032]


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


@pytest.mark.parametrize("name", ["paper-t5-alexnet_bn-lars-512", MLPERF.name])
def test_lars_recipe_equals_the_reference(name):
    recipe = recipes.get(name).replace(**SHORT, warmup_epochs=1, warmup_start=0.0)
    rate = recipe.schedule(1000)
    names = PARAMS if recipe.mask is True else WEIGHTS
    rule = {"beta": recipe.weight_decay, "fallback": 1.0}
    oracle = Lars(PARAMS, decayed=names, adapted=names, **rule)
    for step, got in enumerate(replay(recipe.optimizer(1000))):
        expected = oracle.step(RECORDED[step], float(rate(step)))
        assert_equal(got, expected, rtol=2e-5)  # a rate of 17 on unadapted leaves


# Weights follow the rule of each source; β is raised so that denominators differ.
@pytest.mark.parametrize(("name", "order", "denominator", "fallback", "eps"), [
    ("barlow-twins-resnet50-lars-2048", "unscaled", "joint", 0.024, 0.0),
    ("vicreg-resnet50-lars-512", "unscaled", "joint", 1.0, 0.0),
    ("byol-resnet50-lars-4096-1000-epochs", "unscaled", "joint", 1.0, 0.0),
    ("simclr-resnet50-lars-4096-linear", "scaled", "joint", 1.0, 0.0),
    ("moco-v3-resnet50-lars-4096-300-epochs", "unscaled", "joint", 1.0, 0.0),
    ("swav-resnet50-lars-4096", "unscaled", "separate", 1.0, 1e-8),
    ("mlperf-v0.7-resnet50-lars-4096", "scaled", "separate", 1.0, 1e-7),
    ("mlperf-rcp-resnet50-lars-3264", "unscaled", "separate", 1.0, 0.0),
])  # fmt: skip
def test_a_recipe_has_the_rule_of_its_source(name, order, denominator, fallback, eps):
    recipe = recipes.get(name)
    assert (recipe.momentum_order, recipe.denominator) == (order, denominator)
    np.testing.assert_allclose([recipe.fallback_ratio, recipe.eps], [fallback, eps])
    rule = {"order": order, "denominator": denominator, "fallback": fallback}
    assert_trains_as(recipe.replace(weight_decay=0.3, eps=0.1), **rule, eps=0.1)


def test_the_order_post_has_the_ratio_of_the_momentum():
    recipe = recipes.get("simclr-resnet50-lars-4096-linear").replace(
        momentum_order="post", weight_decay=0.3, denominator="separate"
    )
    assert_trains_as(recipe, order="post", denominator="joint", fallback=1.0)
    tx = recipe.optimizer(1000, keep_layer_stats=True)
    state = tx.init(PARAMS)
    for step in range(3):
        _, state = tx.update(RECORDED[step], state, PARAMS)
        stats = optax.tree.get(state, "layer_stats")
        if step == 0:  # the momentum of a first update is its g + βw
            expected = recipe.layer_stats(RECORDED[0], PARAMS)
            for name in PARAMS:
                np.testing.assert_allclose(
                    stats[name].trust_ratio, expected[name].trust_ratio, rtol=1e-6
                )
    sgd = recipe.replace(algorithm="sgd")
    unscaled = sgd.replace(momentum_order="unscaled")
    assert_equal(replay(sgd.optimizer(1000)), replay(unscaled.optimizer(1000)))


def assert_trains_as(recipe, **rule):
    recipe = recipe.replace(**SHORT, warmup_epochs=1, warmup_start=0.0)
    rate = recipe.schedule(1000)
    names = PARAMS if recipe.mask is True else WEIGHTS
    beta = {"beta": recipe.weight_decay, "mu": recipe.momentum}
    oracle = Lars(PARAMS, decayed=names, adapted=names, **beta, **rule)
    for step, got in enumerate(replay(recipe.optimizer(1000))):
        expected = oracle.step(RECORDED[step], float(rate(step)))
        assert_equal(got, expected, rtol=2e-5)


def test_a_constant_warm_up_keeps_its_start():
    recipe = MLPERF.replace(warmup="constant", warmup_start=2.0)
    rate = recipe.schedule(IMAGENET)
    assert [float(rate(t)) for t in (0, 780, 781)] == [2.0, 2.0, 17.0]


def test_fallback_ratio_is_that_of_leaves_not_adapted_and_of_zero_gradients():
    recipe = MLPERF.replace(warmup_epochs=0)
    grads, changed = RECORDED[0], (recipe.replace(fallback_ratio=x) for x in (1.0, 0.5))
    both = [replay(x.optimizer(10**6), grads=[grads])[0] for x in changed]
    for name, weight in PARAMS.items():
        whole, less = (np.asarray(got[name] - weight) for got in both)
        falls_back = np.ndim(weight) < 2 or not grads[name].any()
        # Differences of float32 weights near 1: an absolute 1e-6.
        expected = whole * (0.5 if falls_back else 1.0)
        np.testing.assert_allclose(less, expected, rtol=1e-4, atol=1e-6)
        assert whole.any() == (np.ndim(weight) > 1 or grads[name].any()), name


def test_sgd_recipe_has_the_rate_inside_the_momentum_and_goyal_outside():
    def steps(recipe):
        return replay(recipe.optimizer(1000))

    def by_hand(recipe, scaled):
        rate = optax.scale_by_learning_rate(recipe.schedule(1000))
        trace = optax.trace(0.9, nesterov=recipe.nesterov)
        mask = None if scaled else trees.as_mask(WEIGHTS, PARAMS)
        decay = optax.add_decayed_weights(1e-4, mask)
        order = (rate, trace) if scaled else (trace, rate)
        return replay(optax.chain(decay, *order))

    caffe = recipes.get("paper-t1-resnet50-sgd-256").replace(**SHORT)
    goyal = GOYAL.replace(**SHORT, warmup_epochs=1, boundaries=(2, 3))
    assert_equal(steps(caffe), by_hand(caffe, True))
    assert_equal(steps(goyal), by_hand(goyal, False))


def test_sgd_recipe_takes_biases_alone():
    params = {"bias": jnp.ones(3)}
    updates = trees.update(GOYAL.optimizer(10**6), params, params)
    np.testing.assert_allclose(updates["bias"], -0.1 * 1.9, rtol=1e-6)  # Nesterov


@pytest.mark.parametrize("order", ["scaled", "unscaled"])
def test_sgd_recipe_sums_in_a_float32_buffer_and_decays_no_stacked_vector(order):
    recipe = GOYAL.replace(warmup_epochs=0, momentum_order=order, weight_decay=0.5)
    tx = recipe.optimizer(10**6, stacked_axes=0, accumulator_dtype="float32")
    tree = {"kernel": jnp.ones((2, 3, 4)), "gain": jnp.ones((2, 4))}
    params = jax.tree.map(lambda x: x.astype("bfloat16"), tree)
    grads = jax.tree.map(lambda x: x * jnp.bfloat16(1e-2), params)
    *_, (updates, state) = trees.each_step(tx, [grads] * 2, params)
    rate = -recipe.learning_rate if order == "scaled" else 1.0
    sums = {name: 1.9 * rate * (float(jnp.bfloat16(1e-2)) + decay)
            for name, decay in (("kernel", 0.5), ("gain", 0.0))}  # fmt: skip
    trace = optax.tree.get(state, "trace")
    assert {x.dtype.name for x in updates.values()} == {"bfloat16"}
    for name, expected in sums.items():
        np.testing.assert_allclose(trace[name], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_lars_recipe_is_lars_in_half_precision_and_of_stacked_layers(dtype, momentum):
    recipe = MLPERF.replace(warmup_epochs=0, momentum=momentum)
    random = np.random.default_rng(0)
    draw = [{"kernel": random.normal(size=(3, 4, 5)) * 1e-4} for _ in range(4)]
    params, *grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw)
    options = {"stacked_axes": 0, "accumulator_dtype": "float32"}
    rate, tx = recipe.schedule(10**6), recipe.optimizer(10**6, **options)
    own = lars_optax.lars(rate, recipe.weight_decay, momentum=momentum, **options)
    assert_equal(replay(tx, params, grads), replay(own, params, grads))
    held = sum(x.size for x in jax.tree.leaves(tx.init(params)))
    assert held == 1 + (params["kernel"].size if momentum else 0)  # and a count
