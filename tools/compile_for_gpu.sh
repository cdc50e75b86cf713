#!/bin/sh
# compile_for_gpu.sh program|test: makes .venv-gpu, where JAX can compile for NVIDIA GPUs
# but not run on them, and uses it. It needs no GPU.
# program: counts the kernels and the memory of compiled steps and saves them.
# test: runs the tests that compile for a GPU.
# If JAX cannot compile for a GPU here, it says so and succeeds.
set -eu
cd "$(dirname "$0")/.."
. tools/locked_venv.sh
case ${1:-nothing} in
    program | test) ;;
    *) echo "got ${1:-nothing}; give program or test" >&2; exit 2 ;;
esac
if [ "$(uname -s)" != Linux ]; then
    echo "skipped, because JAX's CUDA plugin runs on Linux alone"
    exit 0
fi
locked_venv gpu 12 13 "python3.13 python3.12 python3" requirements.lock \
    jax-cuda13-pjrt jax-cuda13-plugin nvidia-cuda-nvcc nvidia-nvvm
if [ "$1" = program ]; then
    exec "$python" -m benchmarks.speed.gpu_program
fi
exec "$python" -m pytest -p no:cacheprovider tests/benchmarks/test_gpu_program.py
