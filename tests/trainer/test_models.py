"""The networks' facts: counts, sizes, fillers, masks, precision, refusals.

Sources of the figures: BVLC/caffe models/bvlc_alexnet, borisgin/nvcaffe-0.16
models/alexnet_bn and models/resnet50, and the paper's Table 4.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import cases
from networks import KEY, logits_of, make, named_leaves, random_inputs, shapes
from trees import assert_refused

import lars_optax
from benchmarks.study.layers import PAPER
from examples.imagenet.models import image_pixels, networks
from examples.imagenet.models.resnet import ResNet

ALEXNETS = ("alexnet", "alexnet_bn", "alexnet_bn_train_val")


def outputs(model, side):
    """Logits, each layer's output and the new moments, as shapes and dtypes."""
    images = jnp.zeros((2, side, side, 3), jnp.uint8)

    options = {"train": True, "rngs": {"dropout": KEY}, "capture_intermediates": True}
    options["mutable"] = ["intermediates", "batch_stats"]
    run = partial(model.apply, images=images, **options)
    logits, state = jax.eval_shape(run, shapes(model, side))
    found = named_leaves(state["intermediates"])
    found = {name.replace("/__call__", ""): leaf for name, leaf in found.items()}
    return logits, found, state.get("batch_stats", {})


# Of each network the parameters, in how many leaves, of which kernels; and the
# running statistics.
SIZES = {
    "alexnet": (60_965_224, 16, 8, 0),
    "alexnet_bn": (60_965_224, 16, 8, 2 * (96 + 256 + 384 + 384)),
    "alexnet_bn_train_val": (60_966_856, 22, 8, 2 * (96 + 256 + 384 + 384 + 256)),
    "resnet50": (25_557_032, 161, 54, 53_120),
    "resnet50_v1.5": (25_557_032, 161, 54, 53_120),
}


@pytest.mark.parametrize("network", SIZES)
def test_parameters_and_the_default_mask(network):
    parameters, leaves, kernels, running = SIZES[network]
    variables = shapes(make(network), image_pixels(network))
    found = jax.tree.leaves(variables["params"])
    assert (sum(leaf.size for leaf in found), len(found)) == (parameters, leaves)
    stats = jax.tree.leaves(variables.get("batch_stats", {}))
    assert sum(leaf.size for leaf in stats) == running
    mask = named_leaves(lars_optax.exclude_bias_and_norm(variables["params"]))
    assert sum(mask.values()) == kernels
    assert all(name.endswith("kernel") == adapted for name, adapted in mask.items())


@pytest.mark.parametrize("network", ALEXNETS)
def test_sizes_of_alexnet_and_one_kernel_for_both_groups(network):
    _, found, _ = outputs(make(network), 227)
    sides = [found[f"conv{i}"].shape[1] for i in range(1, 6)]
    assert sides == [55, 27, 13, 13, 13]
    params = shapes(make(network), 227)["params"]
    assert params["conv2"]["kernel"].shape == (5, 5, 48, 256)
    assert params["fc6"]["kernel"].shape == (6 * 6 * 256, 4096)


@pytest.mark.parametrize(("network", "side"), [("resnet50", 28), ("resnet50_v1.5", 56)])
def test_v1_halves_in_the_1x1_and_v1_5_in_the_3x3(network, side):
    _, found, _ = outputs(make(network), 224)
    assert found["conv1"].shape[1:] == (112, 112, 64)
    assert found["stage1_block1/conv1"].shape[1:] == (56, 56, 64)  # VALID would be 55
    assert found["stage2_block1/conv1"].shape[1] == side
    assert found["stage2_block1/conv2"].shape[1] == 28
    assert found["stage2_block1/conv_projection"].shape[1:] == (28, 28, 512)
    assert found["stage4_block3"].shape[1:] == (7, 7, 2048)


@cache
def initial(model, side):
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    variables = jax.jit(partial(model.init, train=False))(KEY, images)
    return jax.device_get(variables["params"])


def assert_normal(kernel, std):
    # Five standard errors of a mean and of a standard deviation.
    error = 5 * std / np.sqrt(kernel.size)
    assert abs(kernel.mean()) < error
    assert abs(kernel.std() - std) < error / np.sqrt(2)


BIASES = {
    "alexnet": (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0),
    "alexnet_bn": (0.01, 0.01, 0.01, 0.01, 0.01, 0.1, 0.1, 0.01),
    "alexnet_bn_train_val": (None,) * 4 + (0.1, 0.1, 0.1, 0),
}


@pytest.mark.parametrize("network", BIASES)
def test_fillers_of_alexnet(network):
    width = 1.0 if network == "alexnet_bn" else 0.25  # that of Table 4
    params = initial(make(network, width=width), 227)
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    for name, bias in zip(names, BIASES[network], strict=True):
        assert_normal(params[name]["kernel"], 0.005 if name in ("fc6", "fc7") else 0.01)
        assert ("bias" in params[name]) == (bias is not None)
        assert bias is None or (params[name]["bias"] == np.float32(bias)).all()


def test_norms_at_the_first_step_are_those_of_table_4():
    params = named_leaves(initial(make("alexnet_bn"), 227))
    assert len(params) == len(PAPER)
    for name, (column, printed, *_, expected) in PAPER.items():
        found = params[name].ravel()
        # Of n draws of N(0, s) the norm has a standard deviation of s/√2.
        error = 0.01 / np.sqrt(2) if name.endswith("kernel") else 0
        assert abs(np.linalg.norm(found) - expected) < 4 * error + 1e-5 * expected
        digit = 10.0 ** -len(f"{printed:g}".partition(".")[2])
        assert abs(printed - expected) < 2 * error + digit / 2, column


@pytest.mark.parametrize("zero", [False, True])
def test_fillers_of_resnet(zero):
    model = ResNet(1000, 0.0, 1.0, blocks=(1,), zero_init_last_bn=zero)
    for name, leaf in named_leaves(initial(model, 8)).items():
        if name.endswith("kernel"):
            assert_normal(leaf, np.sqrt(2 / np.prod(leaf.shape[:-1])))
        else:
            one = name.endswith("scale") and not (zero and "bn3" in name)
            assert (leaf == one).all(), name


@pytest.mark.parametrize("network", networks())
def test_bfloat16_computes_and_float32_keeps(network):
    side = image_pixels(network)
    model = make(network, dtype="bfloat16")
    logits, found, stats = outputs(model, side)
    kept = jax.tree.leaves((shapes(model, side), stats, logits))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    for name, leaf in found.items():
        are_logits = leaf.shape == logits.shape  # no other layer has 1000 outputs
        assert leaf.dtype == (jnp.float32 if are_logits else jnp.bfloat16), name


def test_bfloat16_logits_are_those_of_float32_to_two_digits():
    wide = make("alexnet_bn_small", 10)
    inputs = random_inputs(wide, 8, 28)
    logits = logits_of(wide, *inputs)
    rounded = logits_of(make("alexnet_bn_small", 10, dtype="bfloat16"), *inputs)
    assert (logits != rounded).any()
    # Roundings of 2⁻⁹ in five layers.
    np.testing.assert_allclose(rounded, logits, atol=0.03 * np.abs(logits).max())


@pytest.mark.parametrize("width", [0.01, 0.3])
@pytest.mark.parametrize("network", ["alexnet", "resnet_small", "alexnet_bn_small"])
def test_any_width_divides_into_its_groups(network, width):
    logits, _, _ = outputs(make(network, 7, width=width), image_pixels(network))
    assert logits.shape == (2, 7)


@cases(
    "network, options, words",
    unknown=("lenet", {}, "network.*lenet.*alexnet_bn.*alexnet_small"),
    float16=("alexnet", {"dtype": "float16"}, "float16.*scale the loss.*bfloat16"),
    integers=("alexnet", {"dtype": "int8"}, "dtype.*int8.*float32"),
    all_dropped=("alexnet", {"dropout": 1.0}, "dropout.*1.0.*0 ≤ dropout < 1"),
    no_width=("alexnet", {"width": 0.0}, "width.*0.0.*above 0"),
    width_of_nan=("alexnet", {"width": float("nan")}, "width.*nan"),
    no_classes=("alexnet", {"classes": 0}, "classes.*0.*1 or more"),
    no_spread=("alexnet", {"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std.*0.0.*above 0"),
    sync=("alexnet", {"bn_axis_name": "batch"}, "bn_axis_name.*batch.*alexnet_bn"),
    last_bn=("alexnet_bn", {"zero_init_last_bn": True}, "zero_init_last_bn.*resnet50"),
    dropout=("resnet50", {"dropout": 0.5}, "dropout.*0.5.*alexnet"),
)
def test_what_a_network_does_not_take_is_refused(network, options, words):
    assert_refused(words, make, network, **options)


@pytest.mark.parametrize(("network", "side"), [("alexnet", 38), ("resnet50", 2)])
def test_images_that_leave_no_pixel_are_refused(network, side):
    message = f"images.*{side}×{side}.*{side + 1}"
    assert_refused(message, shapes, make(network), side)
    assert shapes(make(network, width=0.1), side + 1)
