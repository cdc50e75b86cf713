"""The published hyperparameters of runs with LARS and SGD, as recipes.

The recipes are in three modules. The name of a recipe begins with its source:

- `_recipes_paper.py`: "paper" for the rows of the LARS paper's Tables 1 to 3 and 5 to
  7, and "goyal" for Goyal et al.'s run at a batch size of 8192.
- `_recipes_mlperf.py`: "mlperf" for Google's results and the reference convergence
  points of MLPerf.
- `_recipes_self_supervised.py`: "barlow-twins", "vicreg", "byol", "simclr", "moco-v3"
  and "swav" for self-supervised learning of ResNet-50, and "mae" for the linear probe
  of a masked autoencoder.

`names()` lists them and `get(name)` returns one. `Recipe` describes the fields. If the
authors' logs contradict a printed learning rate, there are two recipes. One has the
printed rate. The other has the rate of the logs, and its name ends in "-corrected".
"""

import difflib
import re

from lars_optax import _recipes_mlperf, _recipes_paper, _recipes_self_supervised
from lars_optax._recipe import Recipe as Recipe
from lars_optax._recipe import Steps as Steps

_NETWORK = re.compile("-(?:alexnet|resnet50|vit)")  # in a name, after the family
_RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for module in (_recipes_paper, _recipes_mlperf, _recipes_self_supervised)
    for recipe in module.RECIPES
}


def names(family: str | None = None) -> tuple[str, ...]:
    """Returns the names of the recipes, in the order of their tables.

    Args:
      family: The beginning of the names, up to one of their hyphens or to the end, such
        as "paper", "paper-t7", "mlperf" or "byol". None selects all recipes.

    Raises:
      ValueError: If no name begins with `family`.

    Example:
      >>> names("paper")[0], len(names("mlperf-v1.0"))
      ('paper-t1-resnet50-sgd-256', 3)
    """
    if family is None:
        return tuple(_RECIPES)
    found = tuple(name for name in _RECIPES if f"{name}-".startswith(f"{family}-"))
    if not found:
        known = dict.fromkeys(_NETWORK.split(name)[0] for name in _RECIPES)
        raise ValueError(
            f"no recipe name begins with {family!r}. Names begin for example with "
            f"{', '.join(known)}."
        )
    return found


def get(name: str) -> Recipe:
    """Returns the published recipe that has the given name.

    Args:
      name: A name that `names` lists.

    Raises:
      ValueError: If no recipe has this name. The message has the nearest names.

    Example:
      >>> recipe = get("mlperf-v1.0-resnet50-lars-32768")
      >>> rate = recipe.schedule(num_examples=1_281_167)
      >>> round(float(rate(703)), 3)  # step 703 of 2355 is the end of the warm-up
      29.0
    """
    if name in _RECIPES:
        return _RECIPES[name]
    wanted = str(name).lower()
    nearest = difflib.get_close_matches(wanted, _RECIPES, n=3, cutoff=0.0)
    raise ValueError(
        f"no recipe is called {name!r}; the nearest names are {', '.join(nearest)}. "
        "recipes.names() lists all names. Recipe.at_batch and Recipe.replace give a "
        "recipe another batch size."
    )
