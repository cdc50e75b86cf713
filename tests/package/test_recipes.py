"""Law: a recipe refuses what is wrong, and its fields change together."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_refused

import lars_optax
from lars_optax import recipes

IMAGENET = 1_281_167
MLPERF = recipes.get("mlperf-v1.0-resnet50-lars-8192")
GOYAL = recipes.get("goyal-resnet50-sgd-8192")


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


def test_recipes_can_be_collected_in_a_set():
    assert {MLPERF, MLPERF.replace(), GOYAL} == {MLPERF, GOYAL}


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


def test_boundaries_are_a_tuple():
    for value in (30, None, [30], iter((30,))):
        assert_refused("boundaries must be a tuple", GOYAL.replace, boundaries=value)


def test_a_replaced_field_loses_its_ground():
    recipe = recipes.get("paper-t7-resnet50-lars-8192")
    changed = recipe.replace(mask="exclude_bias_and_norm", momentum=0.9)
    assert "mask" in recipe.inferred
    assert "mask" not in changed.inferred
    assert "momentum" not in changed.hints


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


def test_the_note_of_a_batch_size_leaves_the_source_its_own():
    recipe = recipes.get("paper-t2-alexnet-sgd-512")
    changed = recipe.replace(batch_size=256).replace(epochs=3)
    assert changed.notes.startswith(f"{recipe.notes} learning_rate=0.02 belongs to")
    assert changed.replace(learning_rate=0.01).notes == recipe.notes
    unknown = recipe.replace(learning_rate=None).replace(batch_size=256)
    assert unknown.notes == recipe.notes
