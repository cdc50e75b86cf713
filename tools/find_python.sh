#!/bin/sh
# Defines find_python; source this file to use it.
# find_python LOWEST HIGHEST NAME...: prints the first command NAME that is a Python from
# 3.LOWEST to 3.HIGHEST with the venv module; fails if there is none.
# It searches the PATH first and then the versions that pyenv has installed, because a
# command that pyenv puts on the PATH fails to run unless its version is selected.
find_python() {
    lowest=$1 highest=$2
    shift 2
    for candidate; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    command -v pyenv >/dev/null || return 1
    for name; do
        # The newest release comes first. The name python3.13 matches the version 3.13.1,
        # but neither 3.13-dev nor 3.13.1t.
        for version in $(pyenv versions --bare 2>/dev/null |
            grep -x "${name#python}\.[0-9]*" | sort -t . -k 3,3nr); do
            candidate=$(pyenv prefix "$version" 2>/dev/null)/bin/$name
            if fits "$candidate"; then
                echo "$candidate"
                return
            fi
        done
    done
    return 1
}

fits() {
    "$1" -c "import sys, venv
sys.exit(not (3, $lowest) <= sys.version_info[:2] <= (3, $highest))" 2>/dev/null
}
