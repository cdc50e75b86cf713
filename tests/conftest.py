"""Four virtual CPU devices, and JAX's strictest checks, for every test."""

import jax
import pytest
from compat import enable_x64

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="module", autouse=True)
def compile_fast(request):
    """Tests take longer to compile than to run, but for those of whole AlexNets."""
    fast = request.path.name != "test_models.py"
    jax.config.update("jax_disable_most_optimizations", fast)


@pytest.fixture(scope="session")
def devices():
    found = jax.local_devices()[:4]
    assert len(found) == 4, "start the tests with 4 virtual CPU devices"
    return found


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
