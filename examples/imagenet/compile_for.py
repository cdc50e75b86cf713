"""GPUs to compile for, on a machine that need not have them.

JAX compiles for them as for any other device, but nothing can run on them.
"""

import os
import re
from importlib.metadata import version
from typing import Literal

import jax
from jax.experimental import topologies

Gpu = Literal["h100"]
# What XLA has to know of a GPU, in the text form of its message GpuTargetConfigProto.
_TARGETS: dict[Gpu, str] = {
    "h100": """
        gpu_device_info {
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: 232448
          shared_memory_per_core: 233472
          threads_per_core_limit: 2048
          core_count: 132
          fpus_per_core: 128
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          clock_rate_ghz: 1.98
          l2_cache_size: 52428800
          memory_bandwidth: 3352320000000
          device_memory_size: 84929347584
          cuda_compute_capability { major: 9 }
        }
        platform_name: "CUDA"
        runtime_version { major: 13 }
        dnn_version_info { major: 9 minor: 12 }
        device_description_str: "NVIDIA H100 80GB HBM3"
    """,
}


def memory(name: Gpu) -> int:
    """Returns the bytes of memory that a GPU has."""
    found = re.search(r"device_memory_size: (\d+)", _TARGETS[name])
    assert found
    return int(found[1])


def gpus(name: Gpu, count: int) -> list[jax.Device]:
    """Returns `count` GPUs of one host, for which JAX can compile but not run.

    JAX still runs on the devices of this machine, and `jax.default_backend()` names
    those. Call this function before anything else uses JAX, unless JAX_PLATFORMS is
    "cpu". Raises ValueError if JAX cannot compile for NVIDIA GPUs here.
    """
    # Without this variable JAX loads the plugin only if cuDNN is installed, which
    # compiling does not need. JAX reads it when it first looks for devices.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        topology = topologies.get_topology_desc(
            name,
            "cuda",
            target_config=_TARGETS[name],
            topology=f"1x1x{count}",  # 1 partition of 1 host with `count` GPUs
        )
    except NotImplementedError as error:  # raised for a platform without a plugin
        jaxlib = version("jaxlib")
        raise ValueError(
            f"--compile-for: got {name!r}, but JAX loaded no CUDA plugin; install it"
            f" by `pip install --no-deps jax-cuda13-plugin=={jaxlib}"
            f" jax-cuda13-pjrt=={jaxlib} nvidia-cuda-nvcc nvidia-nvvm`; if it is"
            " installed, set JAX_PLATFORMS=cpu"
        ) from error
    return list(topology.devices)
