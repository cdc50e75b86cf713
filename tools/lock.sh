#!/bin/sh
# Rewrites the two lock files from pyproject.toml, for Python 3.11 to 3.13; needs uv.
# The CUDA one is only used as constraints: it holds what jax[cuda12] and [cuda13] add.
set -eu
cd "$(dirname "$0")/.."
lock() {
    uv pip compile --quiet --universal --python-version 3.11 --no-header \
        --annotation-style line --output-file "$@" pyproject.toml
}
lock requirements.lock --extra examples --extra test
lock requirements-cuda.lock --constraint requirements.lock --extra cuda12 --extra cuda13
