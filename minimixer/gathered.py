"""Modules that only gather names: `minimixer.ops` is engine/ops.py and engine/more_ops.py as one.

A name is looked up where it is each time, and replaced there: who patches `minimixer.ops.exp` has
patched the operation.

>>> from minimixer import ops
>>> from minimixer.engine import more_ops
>>> ops.exp is more_ops.exp
True
"""

import sys
from types import ModuleType
from typing import Any


class Gathered(ModuleType):
    """A module with the public names of others, its `pages`."""

    pages: tuple[ModuleType, ...]
    originals: dict[str, Any]  # what was replaced

    def _page(self, name: str) -> ModuleType | None:
        if name.startswith("_"):
            return None
        return next((page for page in self.pages if name in vars(page)), None)

    def __getattr__(self, name: str) -> Any:  # what is not its own
        page = self._page(name)
        if page is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(page, name)

    def __setattr__(self, name: str, value: Any) -> None:
        page = self._page(name)
        if page is None:
            super().__setattr__(name, value)
        else:
            self.originals.setdefault(name, getattr(page, name))
            setattr(page, name, value)

    def __delattr__(self, name: str) -> None:
        """Put back what a patch replaced: so patchers undo what they did to a name not in vars."""
        if name in self.originals:
            setattr(self._page(name), name, self.originals.pop(name))
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({n for page in self.pages for n in vars(page) if not n.startswith("_")})


def gather(name: str, *pages: ModuleType) -> None:
    """Let the module `name` show the names of `pages`: of the first that has one."""
    module = sys.modules[name]
    vars(module).update(pages=pages, originals={})
    module.__class__ = Gathered
