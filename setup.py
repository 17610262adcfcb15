"""Says whether the package holds a shared library; the rest is in pyproject.toml."""

import pathlib

import setuptools

_NATIVE = pathlib.Path(__file__).parent / "python" / "ai_edge_rms_norm" / "_native"


class Distribution(setuptools.Distribution):
    def has_ext_modules(self):
        return _NATIVE.is_dir()


setuptools.setup(distclass=Distribution)
