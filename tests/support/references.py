"""What a text of ours names (files, sections, targets, commands, keys, Python names), and what of it does not exist.

Two readers: `in_markdown` for a page, `in_python` for the comments, docstrings and messages of a source file. Each
returns one line for every name that leads nowhere.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
import shlex
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cluster.errors import ClusterError
from jobs import cli
from pipelines.errors import PipelineError
from pipelines.schema import settings_of
from tests.support import places

ROOT = places.ROOT
PACKAGES = ("autogaze", "pipelines", "cluster", "jobs")
_FOLDERS = "|".join((*PACKAGES, "tests", "benchmarks", "docs", r"\.ci"))
_PATH = re.compile(rf"(?<![\w/.:@-])((?:{_FOLDERS})/(?:[\w./*-]*[\w*/])?)(?:::(\w+))?")
_PAGE = re.compile(r"(?<![\w/.*-])([A-Za-z][\w-]*\.md)\b")
_SECTION = re.compile(r"((?:docs/)?[\w-]+\.md), section '([^']+)'")
_DOTTED = re.compile(rf"(?<![\w/.@-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")
_NAME_IN_FILE = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?` \(((?:" + _FOLDERS + r")/[\w/]+\.py)\)")
_SETTING = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)=(\S*)")
_KEY_IN_MESSAGE = re.compile(r"(?<![\w.])([a-z]+\.[a-z0-9_]+)=")
_EXTRA = re.compile(r"(?:autogaze-pipelines|(?<=[\s'\"(])\.)\[([\w,]+)\]")
_SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE_SUFFIXES = (".conf", ".json", ".jsonl", ".md", ".npz", ".parquet", ".py", ".safetensors", ".toml", ".yaml")
_FOREIGN_PARAMETERS = {  # of libraries and of the reference, named in the documentation
    "align_corners",
    "err_detect",
    "generate_only",
    "weights_only",
}
_OUTSIDE = re.compile(r"\.\./shared|\.\./\.library|\bspec(?:ification)?,? (?:section )?\d|docs/design\.md")


def in_markdown(text: str, folder: Path = ROOT) -> list[str]:
    """What a page in `folder` names and is not there."""
    blocks = list(_blocks(text))
    prose = "\n".join(line for kind, block in blocks if kind == "prose" for line in block.splitlines())
    found = [*_anywhere(text), *_spans(prose), *_keys_named(prose), *_broken_links(text, folder)]
    for kind, block in blocks:
        if kind == "code":
            found += _shell(block)
    return found


def in_python(source: str, messages: bool = True) -> list[str]:
    """What a Python file's comments and docstrings name and is not there; with `messages` its other strings too."""
    found = []
    for text in _comments(source):
        found += [*_anywhere(text), *_spans(text)]
    for text, documents in _strings(source):
        if documents:
            found += [*_anywhere(text), *_spans(text)]
        elif messages:
            found += [*_anywhere(text), *_keys_in_message(text)]
    return found


def in_text(text: str) -> list[str]:
    """What any other text names and is not there: a Makefile, a script, a configuration."""
    return list(_anywhere(text))


# -- the two kinds of file ---------------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """("code" or "prose", lines): fenced code without its fences, indented code, and everything else."""
    lines, fenced, after_blank = [], False, True
    kind = "prose"
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            yield kind, "\n".join(lines)
            lines, fenced = [], not fenced
            kind = "code" if fenced else "prose"
            continue
        indented = not fenced and line.startswith("    ") and (after_blank or kind == "code")
        now = "code" if fenced or indented else "prose"
        if now != kind and line.strip():
            yield kind, "\n".join(lines)
            lines, kind = [], now
        lines.append(line)
        after_blank = not line.strip()
    yield kind, "\n".join(lines)


def _comments(source: str) -> Iterator[str]:
    """Comments; those on neighbouring lines are one text."""
    lines: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != last + 1:
            yield " ".join(lines)
            lines = []
        lines.append(token.string.lstrip("#: "))
        last = token.start[0]
    if lines:
        yield " ".join(lines)


def _strings(source: str) -> Iterator[tuple[str, bool]]:
    """Every string of a file, and whether it stands alone as a docstring does. What is filled in is `{}`."""
    nodes = list(ast.walk(ast.parse(source)))
    alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    inside = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield "".join(parts), False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield textwrap.dedent(node.value), id(node) in alone


# -- what a text may name ----------------------------------------------------------------------------------------------


def _anywhere(text: str) -> Iterator[str]:
    """Names that mean one thing wherever they stand."""
    text = re.sub(r"[ \t]*\n[ \t#]*", " ", text)
    for match in _OUTSIDE.finditer(text):
        yield f"{match[0]}: is not part of the repository"
    for path, test in _PATH.findall(text):
        if "NAME" in path:  # a file that the reader is to write
            continue
        if not list(ROOT.glob(path)):
            yield f"{path}: no such file"
        elif test and not re.search(rf"\bdef {test}\(", (ROOT / path).read_text()):
            yield f"{path}: has no {test}"
    for page in _PAGE.findall(text):
        if not any((folder / page).exists() for folder in (ROOT, ROOT / "docs", ROOT / "docs" / "reference")):
            yield f"{page}: no such page"
    sections = _SECTION.findall(text)
    if len(sections) != text.count(", section '"):
        yield "a section is named without its page: write docs/x.md, section 'Title'"
    for page, title in sections:
        file = ROOT / (page if page.startswith("docs/") else f"docs/{page}")
        if file.exists() and title not in headings(file.read_text()):
            yield f"{page}: has no section '{title}'"
    for name in _DOTTED.findall(text):
        if not name.endswith(_FILE_SUFFIXES) and not resolves(name):
            yield f"{name}: no such module or name"
    for name, path in _NAME_IN_FILE.findall(text):
        if (ROOT / path).exists() and not _has(ROOT / path, name.split(".")):
            yield f"{path}: has no {name}"
    for extras in _EXTRA.findall(text):
        yield from (f"[{extra}]: no such extra" for extra in extras.split(",") if extra not in _extras())


def _spans(text: str) -> Iterator[str]:
    """Names in `code spans`: commands, targets, settings and dotted keys."""
    for span in _SPAN.findall(text):
        words = span.split()
        if words[:1] == ["make"] and len(words) > 1:
            yield from _target(words[1])
        elif words[:1] == ["autogaze"]:
            yield from _command(span)
        elif words and all(_SETTING.fullmatch(word) for word in words):
            yield from _settings(words)


def _keys_named(text: str) -> Iterator[str]:
    """Dotted keys in code spans without a value. (In Python files the same words are variables.)"""
    for span in _SPAN.findall(text):
        if _is_key_like(span) and span not in job_keys():
            yield f"{span}: no such key"


def _keys_in_message(text: str) -> Iterator[str]:
    for name in _KEY_IN_MESSAGE.findall(text):
        if name.partition(".")[0] in _groups() and name not in job_keys():
            yield f"{name}=: no such key"


def _shell(block: str) -> Iterator[str]:
    """What the commands of a code block name."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        if re.match(r"\s*(sudo )?make [a-z]", line):
            yield from _target(line.split()[1])
        elif re.match(r"\s*autogaze ", line):
            yield from _command(line)
        elif (script := re.match(r"\s*python (benchmarks/\w+\.py)", line)) and (ROOT / script[1]).exists():
            source = (ROOT / script[1]).read_text()
            flags = re.findall(r"\s(--[a-z0-9-]+)", line)
            yield from (f"{script[1]}: has no {flag}" for flag in flags if f'"{flag}"' not in source)
        elif match := re.match(r"\s*from ((?:" + "|".join(PACKAGES) + r")[\w.]*) import ([\w, ]+)", line):
            names = [name.strip() for name in match[2].split(",")]
            yield from (f"{match[1]}.{name}: no such name" for name in names if not resolves(f"{match[1]}.{name}"))


def _broken_links(text: str, folder: Path) -> Iterator[str]:
    for target in _LINK.findall(text):
        file, _, anchor = target.partition("#")
        if "://" in file or file.startswith("mailto:"):
            continue
        if file and not (folder / file).exists():
            yield f"link to {target}: no such file"
        elif anchor:
            page = (folder / file).read_text() if file else text
            if anchor not in map(_slug, headings(page)):
                yield f"link to {target}: no such section"


def headings(page: str) -> list[str]:
    """The titles of a page's sections, those in code left out."""
    prose = re.sub(r"```.*?```", "", page, flags=re.S)
    return [title.strip() for title in re.findall(r"^#{1,6} (.+)$", prose, re.M)]


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _target(name: str) -> Iterator[str]:
    name = name.rstrip(".,;:")
    if re.fullmatch(r"[a-z-]+", name) and not re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.M):
        yield f"make {name}: no such target"


# -- commands and keys -------------------------------------------------------------------------------------------------


def _command(line: str) -> Iterator[str]:
    """What is wrong with a command line. Capitals and `...` stand for anything; `a|b` is one or the other."""
    line = re.split(r" > | \| |&&|;", line.replace("\n", " "))[0]
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:
        yield f"{line}: quotes do not match"
        return
    choices = [word.split("|") if re.fullmatch(r"[a-z|-]+", word) else [word] for word in words]
    for chosen in itertools.product(*choices):
        yield from _wrong_in_command(chosen)


@cache
def _wrong_in_command(words: tuple[str, ...]) -> list[str]:
    return list(_one_command(list(words)))


def _one_command(words: list[str]) -> Iterator[str]:
    line = "autogaze " + " ".join(words)
    submitting = words[:1] == ["submit"]
    words = words[submitting:]
    if not words or re.fullmatch(r"[A-Z]+|\.\.\.|--[a-z0-9-]+", words[0]):
        return
    if words[0] in ("cluster", "train") and (len(words) == 1 or re.fullmatch("[A-Z]+", words[1])):
        return  # the jobs of that name together
    certain, placeholders, words = [], [], _without_files(words)
    for word in words:
        value = word.partition("=")[2]
        if re.fullmatch(r"[A-Z]+(\.\.\.)?|\.\.\.|KEY=VALUE(\.\.\.)?|--help", word):
            continue
        if "=" in word and ("..." in value or not value or re.search(r"\b[A-Z]{2,}\b", value)):
            placeholders.append(word)
        else:
            certain.append(word)
    if submitting and not any(word.startswith("cluster=") for word in certain):
        certain.append("cluster=FILE")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = cli.read_command(certain, submitting)
    except (PipelineError, ClusterError) as error:
        yield f"{line}: {error}"
        return
    except SystemExit:
        yield f"{line}: {said.getvalue().strip().splitlines()[-1]}"
        return
    known = {key.name for key in settings_of(parsed.config)} | ({"cluster"} if submitting else set())
    for word in placeholders:
        if word.partition("=")[0] not in known:
            yield f"{line}: {word.partition('=')[0]}: no such key of this job"


def _without_files(words: list[str]) -> list[str]:
    """Without the YAML files that a command would read, which a reader has and this repository has not."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--config" and ("=" in word or not word.endswith((".yaml", "FILE", "FILE]"))):
            # What follows the file of `cluster VERB FILE` would be taken for a file.
            job_id = words[0] == "cluster" and len(kept) > 1 and re.fullmatch(r"\d+|ID", word)
            kept.append(f"id={word}" if job_id else word)
        skip = word == "--config"
    return kept


def _settings(words: list[str]) -> Iterator[str]:
    for word in words:
        name = word.partition("=")[0]
        if name not in job_keys() and name not in _parameters() | _FOREIGN_PARAMETERS:
            yield f"{word}: no such key"


def _is_key_like(span: str) -> bool:
    if not re.fullmatch(r"[a-z]+\.[a-z][a-z0-9_]*(\.[a-z0-9_]+)?", span) or span.endswith(_FILE_SUFFIXES):
        return False
    return span.partition(".")[0] in _groups()


@cache
def job_keys() -> frozenset[str]:
    """The keys of all jobs and of the cluster's file."""
    names = {"cluster"}
    for job in cli.JOBS.values():
        names.update(key.name for key in settings_of(job.load_schema()()))
    for verb in ("render", "preflight", "status"):
        parsed = cli.read_command(["cluster", verb])
        names.update(key.name for key in settings_of(parsed.config))
    return frozenset(names)


@cache
def _groups() -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in job_keys() if "." in name)


@cache
def _parameters() -> frozenset[str]:
    """Names that Python code may give a value to in a call of ours."""
    names: set[str] = set()
    for file in sources(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return frozenset(names)


@cache
def _extras() -> frozenset[str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return frozenset(re.findall(r"^(\w+) = \[", section, re.M))


# -- Python names ------------------------------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module of ours defines. Imports nothing."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.exists():
            return _has(file, parts[count:])
    return False


def _has(file: Path, names: list[str]) -> bool:
    """Whether a module defines names[0] (and it names[1])."""
    if not names:
        return True
    for node in _statements(file):
        if names[0] in _bound(node):
            return len(names) == 1 or (isinstance(node, ast.ClassDef) and _in_class(node, names[1]))
    return False


@cache
def _statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text()).body


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _in_class(node: ast.ClassDef, name: str) -> bool:
    if any(name in _bound(part) for part in node.body):
        return True
    attributes = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
    return any(part.attr == name and isinstance(part.ctx, ast.Store) for part in attributes)
