#!/usr/bin/env bash
# Runs a Python file of this workspace: run_in_environment.sh INTERPRETER FILE ARGS...
set -euo pipefail
interpreter="$1"
# Python finds its environment beside the path that it is started by.
while [[ ! -e "${interpreter%/*}/../pyvenv.cfg" ]]; do
  interpreter="$(readlink "$interpreter")"
done
PYTHONPATH="$PWD/python:$PWD" exec "$interpreter" "${@:2}"
