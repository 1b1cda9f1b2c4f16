"""`python -m jobs.reference` (make reference): write docs/reference/, a page of keys for each job, from its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.cli import JOBS, Subcommand
from jobs.config import type_name
from pipelines.schema import Setting, settings_of

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
_MADE = "<!-- Made by `make reference` from the job's config; a test compares. -->"


def pages() -> dict[str, str]:
    """The text of every page, by its file's name."""
    index = [
        "# Keys of every job",
        _MADE,
        "",
        "`autogaze JOB --help` prints the same keys; `autogaze JOB --print-config` prints them as YAML for `--config`.",
        "The keys of a cluster's file are in [launch.md](../launch.md#the-file).",
        "",
        "Jobs that go on with what is there (preprocess, train, rl) compare settings. On resume, a key must have the",
        "`same value`; or lead to the `same content`, compared by its fingerprint, wherever it lies now; or may have",
        "`any value`. What differs is refused by name.",
        "",
        "| job | what it does |",
        "|---|---|",
        *(f"| [{name}]({_file(name)}) | {job.help} |" for name, job in JOBS.items()),
        "",
    ]
    return {"README.md": "\n".join(index)} | {_file(name): page(name) for name in JOBS}


def page(name: str) -> str:
    """The page of a job."""
    job = JOBS[name]
    config = job.load_schema()()
    lines = [f"# autogaze {name}", _MADE, "", f"{_first_line(config)} Part of [all jobs](README.md).", ""]
    if usage := getattr(config, "usage", ""):
        lines += ["```sh", usage, "```", ""]
    if job.positional:
        lines += [f"A word without `=` sets `{job.positional}`.", ""]
    for title, part, keys in _sections(config):
        if title:
            lines += [f"## {title}", "", _first_line(part), ""]
        lines += [*_table(keys, job), ""]
    return "\n".join(lines)


def _sections(config: Any) -> Iterator[tuple[str, Any, list[Setting]]]:
    """The job's own keys, then those of each part, with the part's name and config."""
    keys = settings_of(config)
    yield "", config, [key for key in keys if "." not in key.name]
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            yield field.name, part, [key for key in keys if key.name.startswith(f"{field.name}.")]


def _table(keys: list[Setting], job: Subcommand) -> Iterator[str]:
    columns = ["key", "type", "default", "values", *(["on resume"] if job.resumes else []), "meaning"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for key in keys:
        resume = [key.on_resume] if job.resumes else []
        default = "must be given" if key.required else f"`{_text(key.value)}`"
        cells = [f"`{key.name}`", type_name(key.type), default, _values(key), *resume, key.help]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _values(key: Setting) -> str:
    words = ", ".join(f"`{word}`" if word else "`''`" for word in key.choices) or key.limits.words(key.type)
    return f"{words or 'any'}, or null" if key.optional else words


def _text(value: Any) -> str:
    return str(yaml.safe_dump(value, allow_unicode=True, width=10**6).splitlines()[0])


def _first_line(config: Any) -> str:
    return (type(config).__doc__ or "").strip().splitlines()[0]


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.md"


def main() -> None:
    """Write the pages, and remove those of jobs that are no more."""
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for file in FOLDER.glob("*.md"):
        if file.name not in written:
            file.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
