"""Imports run one way: jobs -> cluster, pipelines -> autogaze; autogaze and cluster import nothing of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import places

ROOT = places.ROOT
ALLOWED = {
    "autogaze": {"autogaze"},
    "pipelines": {"pipelines", "autogaze"},
    "cluster": {"cluster"},
    "jobs": {"jobs", "cluster", "pipelines", "autogaze"},
}
FORBIDDEN = {"autogaze": {"ray", "fsspec", "s3fs", "rich", "omegaconf", "av", "pandas", "pyarrow"}}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        names = imports(file)
        assert names & ALLOWED.keys() <= ALLOWED[package], file
        assert not names & FORBIDDEN.get(package, set()), file


@pytest.mark.parametrize("package", ALLOWED)
def test_a_file_holds_one_idea(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 500, file
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} does not say what it is"
