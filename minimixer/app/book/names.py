"""Where names are defined: what a reader may click on in code.

Definitions are the classes, functions and constants of a module, and the methods of its classes. A
name is followed through imports to where it is made; what cannot be followed is no link.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from .order import Page, address, tree_of

Place = tuple[int, int]  # line, column
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass
class Module:
    """A module's definitions, {name: place}, and what its imports bind, {name: dotted name}."""

    page: Page
    tree: ast.Module
    defined: dict[str, Place] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)


def dotted(name: str) -> str:
    """engine/ops.py -> engine.ops; __init__.py is its room."""
    parts = name.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Names:
    """All modules of the package, and the way from a use to its definition."""

    def __init__(self, pages: list[Page]):
        self.modules: dict[str, Module] = {}
        for page in pages:
            if page.name.endswith(".py"):
                self.modules[dotted(page.name)] = self._read(page)

    def _read(self, page: Page) -> Module:
        module = Module(page, tree_of(page.file))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom):
                base = _base(node, page)
                if base is not None:
                    for alias in node.names:
                        target = f"{base}.{alias.name}".lstrip(".")
                        module.imported[alias.asname or alias.name] = target
        for node in module.tree.body:
            for name, place in _definitions(node):
                module.defined.setdefault(name, place)
            if isinstance(node, ast.ClassDef):
                bases = [b.id for b in node.bases if isinstance(b, ast.Name)]
                module.bases[node.name] = bases
                for inner in node.body:
                    for name, place in _definitions(inner):
                        module.defined.setdefault(f"{node.name}.{name}", place)
        return module

    def find(self, name: str, depth: int = 0) -> tuple[str, str] | None:
        """(module, name in it) of a dotted name such as engine.tensor.Tensor; name "" for a module
        itself."""
        if depth > 8:
            return None
        if name in self.modules:
            return name, ""
        room, _, last = name.rpartition(".")
        module = self.modules.get(room)
        if module is None:
            outer = self.find(room, depth + 1) if room else None  # a class's method
            if outer and outer[1] and f"{outer[1]}.{last}" in self.modules[outer[0]].defined:
                return outer[0], f"{outer[1]}.{last}"
            return None
        if last in module.defined:
            return room, last
        if last in module.imported:
            return self.find(module.imported[last], depth + 1)
        return None

    def href(self, found: tuple[str, str], here: Page | None = None) -> str:
        page, name = self.modules[found[0]].page, found[1]
        if here is not None and page.name == here.name and name:
            return f"#{name}"
        return address(page.name) + (f"#{name}" if name else "")

    def method(self, module: Module, cls: str, name: str, depth: int = 0) -> str | None:
        """Where a class has a method from: its own, or a base's."""
        if f"{cls}.{name}" in module.defined:
            return self.href((dotted(module.page.name), f"{cls}.{name}"))
        for base in module.bases.get(cls, []):
            found = self.find(f"{dotted(module.page.name)}.{base}")
            if found and found[1] and depth < 8:
                href = self.method(self.modules[found[0]], found[1], name, depth + 1)
                if href:
                    return href
        return None

    def links(self, page: Page) -> dict[Place, str]:
        """{where a name is used: the address of its definition}"""
        module, here = self.modules[dotted(page.name)], address(page.name)
        uses = self._uses(module, module.tree, frozenset(), "")
        return {place: to.removeprefix(here) or to for place, to in uses if to != here}

    def _uses(
        self, module: Module, node: ast.AST, hidden: frozenset[str], cls: str
    ) -> Iterator[tuple[Place, str]]:
        here = dotted(module.page.name)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found = self.find(module.imported.get(alias.asname or alias.name, ""))
                if found and _base(node, module.page) is not None:
                    yield (alias.lineno, alias.col_offset), self.href(found)
            return
        if isinstance(node, ast.ClassDef):
            cls = node.name
        if isinstance(node, Scope):
            hidden = hidden | _locals(node)
        if isinstance(node, ast.Name) and node.id not in hidden:
            found = self.find(f"{here}.{node.id}".lstrip("."))
            if found and (node.lineno, node.col_offset) not in module.defined.values():
                yield (node.lineno, node.col_offset), self.href(found)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, line = node.value.id, node.end_lineno or 0
            place = line, (node.end_col_offset or 0) - len(node.attr)
            if owner in ("self", "cls") and cls:
                target = self.method(module, cls, node.attr)
                if target:
                    yield place, target
            elif owner not in hidden:
                outer = self.find(f"{here}.{owner}".lstrip("."))
                if outer:
                    inner = self.find(".".join(part for part in (*outer, node.attr) if part))
                    if inner:
                        yield place, self.href(inner)
        for child in ast.iter_child_nodes(node):
            yield from self._uses(module, child, hidden, cls)


def _base(node: ast.ImportFrom, page: Page) -> str | None:
    """The dotted name, within the package, that names are imported from; None for others."""
    if not node.level:
        if node.module and (node.module + ".").startswith("minimixer."):
            return node.module.removeprefix("minimixer").lstrip(".")
        return None
    parts = page.name.split("/")[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *(node.module.split(".") if node.module else [])])


def _definitions(node: ast.stmt) -> Iterator[tuple[str, Place]]:
    """What a statement of a module or a class defines; a method's column is that of its name."""
    if isinstance(node, ast.ClassDef):
        yield node.name, (node.lineno, node.col_offset + len("class "))
    elif isinstance(node, ast.FunctionDef):
        yield node.name, (node.lineno, node.col_offset + len("def "))
    elif isinstance(node, ast.AsyncFunctionDef):
        yield node.name, (node.lineno, node.col_offset + len("async def "))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield name.id, (name.lineno, name.col_offset)
    elif isinstance(node, ast.If | ast.Try | ast.With):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from _definitions(child)


def _locals(node: Scope) -> frozenset[str]:
    """Names that a function binds itself: they hide the module's."""
    args = node.args
    names = {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
    names |= {arg.arg for arg in (args.vararg, args.kwarg) if arg}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
    return frozenset(names)
