"""The error of `--compile-for` if JAX has no CUDA plugin."""

from importlib.util import find_spec

import pytest

from examples.imagenet.compile_for import gpus


@pytest.mark.skipif(
    find_spec("jax_plugins") is not None, reason="JAX has a plugin here"
)
def test_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    message = r"--compile-for: got 'h100'.*`pip install .*jax-cuda13-plugin==\d"
    with pytest.raises(ValueError, match=message):
        gpus("h100", 8)
