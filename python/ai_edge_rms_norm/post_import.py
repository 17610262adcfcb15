"""Post-import hooks: what runs right after another package was imported.

Python has none of its own (PEP 369 was withdrawn). Nothing is imported here.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence

__all__ = ["when_imported"]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and runs a hook after its import."""

    def __init__(self, name: str, hook: Callable[[], object]) -> None:
        self._name, self._hook = name, hook
        self._searching = threading.local()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name or getattr(self._searching, "here", False):
            return None
        self._searching.here = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.here = False
        # Only on this loader, so that nothing else that reads the spec sees a change;
        # whoever looks for the module without importing it leaves the hook in place.
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(  # type: ignore[method-assign]
                self._exec_module, spec.loader.exec_module
            )
        return spec

    def _exec_module(
        self,
        exec_module: Callable[[types.ModuleType], None],
        module: types.ModuleType,
    ) -> None:
        exec_module(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _run(self._name, self._hook)


def _run(name: str, hook: Callable[[], object]) -> None:
    try:
        hook()
    except Exception as error:  # The import of the other package must not fail.
        warnings.warn(
            f"{__package__} could not register with {name}: {error!r}",
            RuntimeWarning,
            stacklevel=2,
        )


def when_imported(name: str, hook: Callable[[], object]) -> None:
    """Runs a hook once, as soon as a top-level package is imported.

    Args:
      name: Name of the package. If it is imported already, the hook runs at once.
      hook: Called without arguments; what it raises becomes a RuntimeWarning.
    """
    if sys.modules.get(name) is not None:
        _run(name, hook)
    else:
        sys.meta_path.insert(0, _Finder(name, hook))
