"""What the supported versions of jax name differently."""

import contextlib

import jax

if hasattr(jax, "shard_map"):
    shard_map = jax.shard_map
else:  # jax < 0.6
    from jax.experimental.shard_map import shard_map as shard_map


@contextlib.contextmanager
def enable_x64(enable=True):
    """float64 inside, on every supported jax."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enable)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
