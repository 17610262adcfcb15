"""Compiler flags of all C++ targets."""

COPTS = [
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Werror",
]
