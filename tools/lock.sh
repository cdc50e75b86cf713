#!/bin/sh
# Rewrites the four lock files from pyproject.toml, for Python 3.11 to 3.13; needs uv.
# requirements-cuda.lock lists what jax[cuda12] and jax[cuda13] add to requirements.lock,
# and pip only takes it as constraints.
set -eu
cd "$(dirname "$0")/.."
lock() {
    uv pip compile --quiet --universal --python-version 3.11 --no-header \
        --annotation-style line --output-file "$@" pyproject.toml
}
lock requirements.lock --extra examples --extra test --extra docs
lock requirements-cuda.lock --constraint requirements.lock --extra cuda12 --extra cuda13
# What builds and checks a release, without the package's own dependencies.
sed -n 's/^release = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n' |
    uv pip compile --quiet --universal --python-version 3.11 --no-header \
        --annotation-style line --output-file requirements-package.lock -
# The oldest versions that pyproject.toml allows, and pytest.
grep '^dependencies = ' pyproject.toml | grep -o '[a-z]*>=[0-9.]*' | sed 's/>=/==/' |
    { cat; echo pytest; echo "jaxlib==$(sed -n 's/.*"jax>=\([0-9.]*\)".*/\1/p' pyproject.toml)"; } |
    uv pip compile --quiet --universal --python-version 3.11 --no-header \
        --annotation-style line --output-file requirements-floor.lock -
