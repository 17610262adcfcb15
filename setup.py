"""Says that the package holds shared libraries; the rest is in pyproject.toml."""

import setuptools


class BinaryDistribution(setuptools.Distribution):
    def has_ext_modules(self):
        return True


setuptools.setup(distclass=BinaryDistribution)
