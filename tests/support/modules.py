"""The modules of the four packages as their sources: what each imports, and what it defines."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from tests.support import places

PACKAGES = ("autogaze", "pipelines", "cluster", "jobs")


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted; a package goes by its folder's name."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def lines(self) -> int:
        return len(self.path.read_text().splitlines())

    @cached_property
    def imports(self) -> frozenset[str]:
        """Full names of all that is imported: at the top, inside functions and under TYPE_CHECKING.

        `from a import b` gives "a.b": the module a.b where there is one, else something that a defines.
        """
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import"
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
        return frozenset(names)

    @cached_property
    def ours(self) -> frozenset[str]:
        """Names of the modules of the four packages that it imports, itself excepted."""
        modules = all_modules()
        targets = {name if name in modules else name.rpartition(".")[0] for name in self.imports}
        return frozenset(targets & modules.keys() - {self.name})

    def defines(self) -> Iterator[tuple[str, str]]:
        """(kind, name) of each definition at its top level; kind: class, function, constant or type variable."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                yield "class", node.name
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield "function", node.name
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                kind = "type variable" if "TypeVar(" in ast.unparse(node) else "constant"
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        yield kind, target.id


@cache
def all_modules() -> dict[str, Module]:
    """Every module of the four packages, by name."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((places.ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(places.ROOT).with_suffix("").parts).removesuffix(".__init__")
            modules[name] = Module(name, path)
    return modules


def under(prefix: str) -> list[Module]:
    """A package and every module in it."""
    return [module for name, module in all_modules().items() if f"{name}.".startswith(f"{prefix}.")]


def defined_twice(*kinds: str) -> dict[str, set[str]]:
    """Public names of these kinds that more than one module defines -> those modules."""
    where: dict[str, set[str]] = defaultdict(set)
    for module in all_modules().values():
        for kind, name in module.defines():
            if kind in kinds and not name.startswith("_"):
                where[name].add(module.name)
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def circle(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """The names along one circle of arrows, the first again at the end; [] if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := walk(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])
