#!/bin/sh
# make_venv.sh FOLDER cpu|cuda12|cuda13: makes a new virtual environment in FOLDER with the
# versions in the lock files, for JAX on a CPU or on NVIDIA GPUs with CUDA 12 or 13.
# Installs nothing outside of FOLDER. If Python is missing, it says how to install it.
set -eu
cd "$(dirname "$0")/.."
venv=$1 jax=$2

case $jax in
    cpu | cuda12 | cuda13) ;;
    *) echo "JAX=$jax is unknown; give JAX=cpu, JAX=cuda12 or JAX=cuda13." >&2; exit 2 ;;
esac

how_to_install() {
    if command -v apt-get >/dev/null; then echo "    apt-get install -y python3 python3-venv"
    elif command -v dnf >/dev/null; then echo "    dnf install -y python3.12"
    elif command -v brew >/dev/null; then echo "    brew install python@3.13"
    else echo "    Python 3.13 from https://www.python.org/downloads/"
    fi
}

. tools/find_python.sh
# shellcheck disable=SC2086
if ! python=$(find_python 11 13 ${PYTHON:-python3.13 python3.12 python3.11 python3}); then
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON does not run, or is not Python 3.11, 3.12 or 3.13 with the" \
            "venv module. Unset PYTHON to have this script search for one." >&2
        exit 1
    fi
    echo "Found no Python 3.11, 3.12 or 3.13 with the venv module, neither on the PATH" \
        "nor in pyenv. Install one:" >&2
    how_to_install >&2
    exit 1
fi
echo "Setting up $venv with $("$python" --version) for $jax: takes 1 GB, some minutes."

rm -rf "$venv"
if "$python" -m venv "$venv" 2>/dev/null; then
    pip="$venv/bin/python -m pip"
elif rm -rf "$venv" && "$python" -m venv --without-pip "$venv" 2>/dev/null &&
    "$python" -m pip --version >/dev/null 2>&1; then
    pip="$python -m pip --python $venv/bin/python"
else
    rm -rf "$venv"
    echo "The venv module of $("$python" --version) does not work. Install it:" >&2
    how_to_install >&2
    exit 1
fi
$pip install -qq --disable-pip-version-check -r requirements.lock
if [ "$jax" != cpu ]; then
    $pip install -qq --disable-pip-version-check \
        -c requirements.lock -c requirements-cuda.lock "jax[$jax]"
fi
