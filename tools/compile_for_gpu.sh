#!/bin/sh
# compile_for_gpu.sh program|test: compiles for NVIDIA GPUs on a machine that needs none.
# It makes the environment .venv-gpu, where JAX can compile for GPUs but not run on them.
# program: counts the kernels and the memory of compiled steps and saves the results.
# test: runs the tests that compile for a GPU.
# If this is not Linux, or no suitable Python is found, it says so and succeeds.
set -eu
cd "$(dirname "$0")/.."
. tools/locked_venv.sh
case ${1:-nothing} in
    program | test) ;;
    *) echo "got ${1:-nothing}; give program or test" >&2; exit 2 ;;
esac
if [ "$(uname -s)" != Linux ]; then
    echo "skipped, because JAX's CUDA plugin needs Linux"
    exit 0
fi
locked_venv gpu 12 13 "python3.13 python3.12 python3" requirements.lock \
    jax-cuda13-pjrt jax-cuda13-plugin nvidia-cuda-nvcc nvidia-nvvm
if [ "$1" = program ]; then
    exec "$python" -m benchmarks.speed.gpu_program
fi
exec "$python" -m pytest -p no:cacheprovider tests/benchmarks/test_gpu_program.py
