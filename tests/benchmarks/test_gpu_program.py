"""What steps cost that are compiled for an H100: kernels, bytes, all-reduces, memory.

`make gpu-test` runs these tests, in an environment where JAX can compile for a GPU.
"""

import re
from functools import cache
from importlib.util import find_spec

import jax
import pytest

from benchmarks.networks import shapes
from benchmarks.results import read
from benchmarks.speed.gpu_program import FILE, measure_step, measure_update
from benchmarks.speed.optimizer_step import BASE, LARS, OPTIMIZERS
from examples.imagenet.cli import main
from examples.imagenet.compile_for import gpus, memory

if find_spec("jax_cuda13_plugin") is None:
    reason = "JAX has no CUDA plugin here; make gpu-test runs these tests with it"
    pytest.skip(reason, allow_module_level=True)

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def eight_gpus():
    return gpus("h100", 8)


@pytest.fixture(scope="module")
def update(eight_gpus):
    """Measures an optimizer's step on the leaves of ResNet-50."""

    @cache
    def measured(name, dtype):
        return measure_update(OPTIMIZERS[name], "resnet50", dtype, eight_gpus[0])

    return measured


@pytest.fixture(scope="module")
def step(eight_gpus):
    """Measures the trainer's step with LARS on eight GPUs."""

    @cache
    def measured(network, micro_batches):
        return measure_step(OPTIMIZERS[LARS], network, eight_gpus, micro_batches)

    return measured


def test_gpus_are_of_one_host_and_leave_the_backend(eight_gpus):
    assert [gpu.id for gpu in eight_gpus] == list(range(8))
    assert {gpu.process_index for gpu in eight_gpus} == {jax.process_index()}
    assert {gpu.platform for gpu in eight_gpus} == {"gpu"}
    assert jax.default_backend() == "cpu"


@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_takes_five_passes_and_a_kernel_for_each_leaf(update, dtype):
    sgd = update(BASE, dtype)
    assert sgd["passes"] == pytest.approx(5, rel=0.001)
    assert sgd["kernels"] == len(jax.tree.leaves(shapes("resnet50")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [LARS, f"{LARS}, all leaves"])
class TestLars:
    def test_reads_weights_and_gradients_once_more_than_sgd(self, update, name, dtype):
        assert update(name, dtype)["passes"] <= 1.05 * 7

    def test_copies_no_parameter(self, update, name, dtype):
        record = update(name, dtype)
        # What remains are the norms of the leaves, and XLA's table of the outputs.
        assert record["temporary_bytes"] <= 0.002 * record["bytes"] / record["passes"]

    def test_launches_no_more_kernels_than_recorded(self, update, name, dtype):
        recorded = read(FILE)["updates"][f"resnet50 {dtype}"]["optimizers"][name]
        assert update(name, dtype)["kernels"] <= recorded["kernels"]


@pytest.mark.parametrize("micro_batches", [1, 16])
def test_each_gradient_is_averaged_once(step, micro_batches):
    record = step("alexnet_bn_small", micro_batches)
    loss_and_accuracy = 2 * 4
    averaged = record["gradient_bytes"] + record["batch_stats_bytes"]
    assert record["all_reduced_bytes"] == averaged + loss_and_accuracy


def test_sixteen_micro_batches_take_the_memory_of_one(step):
    one, sixteen = (step("alexnet_bn_small", n)["temporary_bytes"] for n in (1, 16))
    assert sixteen <= 1.05 * one


@pytest.mark.parametrize("network", ["alexnet_bn_small", "resnet_small"])
def test_convolutions_stay_in_bfloat16_and_activations_in_place(step, network):
    record = step(network, 1)
    assert list(record["convolutions"]) == ["bf16 NHWC"]
    assert record["transposed_bytes"] == 0
    assert 0.1 < record["convolution_bytes"] / record["bytes"] < 0.9


@pytest.mark.parametrize("network", ["alexnet_bn_small", "resnet_small"])
def test_neither_weights_nor_momenta_are_copied(step, network):
    assert step(network, 1)["copies"] <= 1  # of the random key of the state


def test_a_dry_run_prints_the_largest_batch_that_fits(capsys):
    flags = "--network alexnet_bn_small --devices 2 --dry-run --compile-for h100"
    main([*flags.split(), "--optimizer", "sgd"])
    *_, compiled, parts, largest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"compiled   for 2 × h100 in \d+ s, not run", compiled)
    limit = 0.75 * memory("h100") / 2**30
    assert f"this fits into the {limit:.1f} GiB that JAX reserves" in parts
    taken = float(re.search(r" per slot, which take ([\d.]+) GiB$", largest)[1])
    assert 0.8 * limit < taken <= limit + 0.05  # the last digit is rounded
