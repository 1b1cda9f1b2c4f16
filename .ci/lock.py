"""Write constraints.txt: the version of everything that this Python has of what the package needs, extras included.

    make lock        # in a checkout with a .venv: upgrade there what should be newer, run the tests, then this

Lines for another Python (`python_version < "3.11"`) are kept as they are. A version that needs a newer Python than the
package gets a marker that says so, and there pip chooses. Local parts of versions (torch 2.13.0+cpu) are left out, so
that the same file serves builds for CPUs and for CUDA; the CUDA libraries are pinned by torch itself.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parent.parent / "constraints.txt"
PROJECT = FILE.with_name("pyproject.toml")
OLDEST = "3.10"  # requires-python of the package
HEAD = """\
# The versions this was built and tested with, all of them: what the package and its extras need, and what that needs.
# Install with: pip install -e . -c constraints.txt       Written by: make lock
# Python 3.10 gets the last releases that still support it.
"""


def needed(project: dict[str, Any], extra: str) -> dict[str, Distribution]:
    """Every distribution that a project with this extra needs here, by its canonical name."""
    extras = project["optional-dependencies"]
    roots = [*project["dependencies"], *extras[extra]]
    for text in roots:  # which may name extras of the project itself
        if (wanted := Requirement(text)).name == project["name"]:
            roots += [line for part in wanted.extras for line in extras[part]]
    todo = [(wanted, "") for wanted in map(Requirement, roots) if wanted.name != project["name"]]
    found: dict[str, Distribution] = {}
    seen = set[tuple[str, str]]()
    while todo:
        wanted, extra = todo.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        for part in ("", *wanted.extras):
            if (name, part) not in seen:
                seen.add((name, part))
                found[name] = distribution(name)
                todo += [(Requirement(line), part) for line in found[name].requires or []]
    return found


def line(distribution: Distribution) -> str:
    """name==version, with a marker where the oldest Python cannot have it."""
    text = f"{canonicalize_name(distribution.metadata['Name'])}=={distribution.version.partition('+')[0]}"
    if SpecifierSet(distribution.metadata.get("Requires-Python") or "").contains(OLDEST):
        return text
    return f'{text}; python_version >= "3.11"'


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit("make lock: run it with Python 3.11 or later; the lines of 3.10 are kept by hand")
    kept = [text for text in FILE.read_text().splitlines() if 'python_version < "3.11"' in text]
    older = {canonicalize_name(re.split("[=;]", text)[0]) for text in kept}
    lines = list(kept)
    for name, found in needed(tomllib.loads(PROJECT.read_text())["project"], "dev").items():
        text = line(found)
        lines.append(f'{text}; python_version >= "3.11"' if name in older and ";" not in text else text)
    FILE.write_text(HEAD + "\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
