"""The environment of programs that print tables."""

# The output of the converter would bury them.
QUIET = {
    "LITERT_TORCH_SHOW_PROGRESS": "n",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TF_CPP_MIN_LOG_LEVEL": "1",
}
