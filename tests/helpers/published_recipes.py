"""The recipes beside the sources' own optimizers and schedules.

`recipe_lines` returns the rows of the third table in docs/guides/published.md.
"""

import json
from unittest import mock

import jax.numpy as jnp
import numpy as np
from compat import enable_x64
from published import (
    IDLE,
    VECTORS,
    about,
    as_schedule,
    errors,
    recorded,
    recorded_rates,
    replay,
)

from lars_optax import recipes
from lars_optax.recipes import Recipe

IMAGENET = 1_281_167
# The schedules that the sources computed at the batch sizes, the epochs and the number
# of images of the published runs.
RUNS = json.loads((VECTORS / "schedules.json").read_text())["runs"]
# The beginning of the recipes' names, the recording of the source's optimizer, and the
# leaf that the source treats otherwise. The code of Barlow Twins leaves out the factor
# of biases where a kernel is zero. apex leaves out the weight decay where a gradient is
# zero.
TF_CONTRIB, KERAS = ("tf_contrib", "skip", None), ("mlperf_keras", "skip", None)
OPTIMIZERS = {
    "barlow-twins": ("barlow_twins", "decay", "head/kernel"),
    "vicreg": ("vicreg", "decay", None),
    "byol": ("byol", "decay", None),
    "simclr": ("simclr", "classic", None),
    "moco-v3": ("moco_v3", "decay", None),
    "swav": ("apex", "swav", IDLE),
    "mae": ("mae", "no_decay", None),
    "mlperf-v0.7-resnet50-lars-2048": TF_CONTRIB,
    "mlperf-v0.7-resnet50-lars-2496": KERAS,
    "mlperf-v0.7-resnet50-lars-4096": KERAS,
    "mlperf-v0.7-resnet50-lars-8192": TF_CONTRIB,
    "mlperf-v0.7-resnet50-lars-65536": TF_CONTRIB,
    "mlperf-v1.0": TF_CONTRIB,
}
NOT_RUN = ("mlperf-rcp", "paper", "goyal")  # families whose code was not run


def recording_of(name):
    """The row of `OPTIMIZERS` for a recipe, or None if its optimizer was not run."""
    if name.endswith("-jax"):
        return None
    found = (row for start, row in OPTIMIZERS.items() if name.startswith(start))
    return next(found, None)


def optimizer_errors(name):
    """The error of each leaf under the recipe's optimizer.

    The recipe has the weight decay and the learning rates of the recording, and its
    momentum if the recording states it.
    """
    source, configuration, _ = recording_of(name)
    theirs, arguments = recorded(source, configuration)
    rates = as_schedule(recorded_rates(source, configuration))
    fields = {"weight_decay": arguments.get("weight_decay", arguments.get("wd"))}
    if "momentum" in arguments:
        fields["momentum"] = arguments["momentum"]
    recipe = recipes.get(name).replace(**fields)
    with mock.patch.object(Recipe, "schedule", return_value=rates):
        return errors(replay(lambda: recipe.optimizer(IMAGENET)), theirs)


def schedule_errors(name):
    """The differences of the schedules at each recorded step, divided by the peak."""
    recipe, run = recipes.get(name), RUNS[name]
    with enable_x64(True):
        ours = np.asarray(recipe.schedule(IMAGENET)(jnp.asarray(run["steps"])))
    assert ours.dtype == np.float64
    return np.abs(ours - run["rates"]) / recipe.learning_rate


def cell(source):
    path = source["path"].replace("Google/benchmarks/resnet/implementations", "…")
    return f"{source['repository']} {source['commit'][:8]}, `{path}`"


def optimizer_cells(name):
    """The source of the optimizer, and the largest error of any leaf."""
    if recipes.get(name).momentum_order == "tf_contrib_1.14":
        return cell(about("tf_contrib_1_14")["source"]), "refused"
    if recording_of(name) is None:
        return "–", "not run"
    source, _, other = recording_of(name)
    found = optimizer_errors(name)
    text = f"{max(found[leaf] for leaf in found.keys() - {other}):.0e}"
    if other:
        text += f", `{other}` {found[other]:.0e}"
    return cell(about(source)["source"]), text


def recipe_lines():
    """The cells of each row: recipe, two differences, optimizer, schedule."""
    ran = sorted((x for x in recipes.names() if x in RUNS), key=is_mlperf)
    lines = []
    for name in ran:
        optimizer, found = optimizer_cells(name)
        difference = f"{max(schedule_errors(name)):.1e}"
        sources = optimizer, cell(RUNS[name]["source"])
        lines.append((f"`{name}`", found, difference, *sources))
    for family in NOT_RUN:
        first, *more = recipes.names(family)
        title = f"`{family}`, {1 + len(more)} recipes" if more else f"`{first}`"
        lines.append((title, "not run", "not run", "–", "–"))
    return lines


def is_mlperf(name):
    return name.startswith("mlperf")
