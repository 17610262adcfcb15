#!/usr/bin/env bash
# Runs a Python file of this workspace: run_in_environment.sh INTERPRETER FILE ARGS...
set -euo pipefail
interpreter="$1"
# Python finds its environment beside the path that it is started by.
while [[ ! -e "${interpreter%/*}/../pyvenv.cfg" ]]; do
  next="$(readlink "$interpreter")" || {
    echo "$1 leads to $interpreter, which is not in a virtual environment" >&2
    exit 1
  }
  # A link may be relative to its own folder.
  [[ $next == /* ]] || next="${interpreter%/*}/$next"
  interpreter="$next"
done
PYTHONPATH="$PWD/python:$PWD" exec "$interpreter" "${@:2}"
