"""Eight virtual CPU devices, and JAX's strictest checks, for every test."""

import gc
import os
import random
from importlib.util import find_spec

import jax
import pytest
from compat import enable_x64

# Most of what tests do is compile. LLVM is several times faster with one module and,
# where XLA can still do without, no MLIR before it; processes that tests start inherit
# the flags.
FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

if find_spec("hypothesis"):  # not where the package is tested alone
    from hypothesis import settings

    settings.register_profile("thorough")  # which random_trees.py fills in

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
# Tracing makes millions of objects, each operation with the stack it came from.
jax.config.update("jax_traceback_in_locations_limit", 1)


def pytest_addoption(parser):
    text = "damaged copies that each test of damaged copies makes of its files"
    parser.addoption("--damaged-copies", type=int, default=60, help=text)


def pytest_collection_finish():
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def compile_fast(request):
    """Compiles with few optimizations, because most tests compile longer than they run.

    The tests of whole AlexNets run longer than they compile. Those of programs for a
    GPU count the kernels of the optimized program.
    """
    fast = request.path.name not in ("test_models.py", "test_gpu_program.py")
    if jax.config.read("jax_disable_most_optimizations") != fast:
        jax.config.update("jax_disable_most_optimizations", fast)
        jax.clear_caches()  # of programs that were compiled the other way


@pytest.fixture(scope="session")
def eight_devices():
    found = jax.local_devices()
    assert len(found) == 8, "start the tests with 8 virtual CPU devices"
    return found


@pytest.fixture(scope="session")
def devices(eight_devices):
    return eight_devices[:4]


@pytest.fixture
def x64():
    """Run the test in float64."""
    with enable_x64():
        yield


@pytest.fixture
def strict():
    """No implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=[False, True], ids=["for_cpu", "for_gpu"])
def for_gpu(request, monkeypatch):
    """True if the package computes in its form for a GPU, which a CPU can run too."""
    if request.param:
        choose = "platform_dependent"
        monkeypatch.setattr(jax.lax, choose, lambda *, default, cuda, rocm: cuda())
    return request.param


@pytest.fixture
def tree(tmp_path):
    """The path of class folders of two classes."""
    from image_trees import two_classes

    return two_classes(tmp_path / "tree")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where the trainer keeps listings of folders: none of the machine's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "lars_optax"


@pytest.fixture
def damaged_copies(request):
    """Yields damaged copies of one of some files, as many as the option says."""
    from mutations import mutate

    def copies(wholes, damage=mutate):
        chance = random.Random(0)
        for _ in range(request.config.getoption("--damaged-copies")):
            yield damage(chance.choice(wholes), chance)

    return copies
