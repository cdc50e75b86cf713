#!/bin/sh
# For other scripts to source.
# find_python LOWEST HIGHEST NAME...: prints the first of the named commands that runs, is
# Python 3.LOWEST to 3.HIGHEST and has the venv module; fails if there is none.
# It searches the PATH for all names, and then the versions that pyenv has installed: a
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
        # The newest release first. The name python3.13 stands for 3.13.1, and not for
        # 3.13-dev or 3.13.1t.
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
