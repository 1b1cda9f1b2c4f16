"""Any text reaches its setting as it was written, from the command line and from YAML, or is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec import ClusterSpec
from jobs import config as configs
from jobs.cli import JOBS
from jobs.submit import changed_settings
from pipelines.errors import PipelineError
from pipelines.schema import setting, settings_of
from pipelines.train.config import TrainConfig

T = TypeVar("T")

# What YAML 1.1, OmegaConf, a shell or Python's own int and float would make something else of.
HOSTILE = [
    *("???", "${x}", "\\${HOME}", "\\\\${HOME}", "${oc.env:HOME}", "$HOME", "%(prog)s", "{0}", "a${b", "$(x)", "`x`"),
    *("2024_01_01", "2024-01-01", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "0123", "0x10", "0b1", "0o7", "1_000"),
    *("1e3", "1e-2", "1.0", ".5", ".inf", "-.INF", ".nan", "inf", "NaN", "1:30", "24:00:00", "-1", "+1", "08", "٣"),
    *(
        "no",
        "No",
        "yes",
        "on",
        "OFF",
        "true",
        "False",
        "y",
        "n",
        "=",
        "<<",
        "NULL",
        "Null",
        "None",
        "nul",
        "~root",
        "~x",
    ),
    *(
        "a,b",
        ",",
        "a=b",
        "=b",
        "a b",
        "'q'",
        '"q"',
        "C:\\x",
        "[1, 2]",
        "{a: b}",
        "- x",
        "---",
        "...",
        "@x",
        "`",
        "|",
        ">",
    ),
    *("!!int 3", "!x", "&a", "*a", "#x", "a #b", "a: b", ":", "%", "?", "? x", " x ", "\t", "x\n", "a\nb", "\r", ""),
    *(
        "é",
        "e\u0301",
        "中文",
        "\U0001f600",
        "\u2028",
        "\x85",
        "\ufeff",
        "\xa0",
        "\x07",
        "\x1b[31m",
        "\udcff",
        "\\udcff",
    ),
]
PLAIN = [  # what a person may write in YAML without quotes, as one word
    *(
        "2024_01_01",
        "2024-01-01",
        "2024-13-45",
        "0123",
        "0x10",
        "0b1",
        "0o7",
        "1_000",
        "1e3",
        "1.0",
        ".5",
        ".inf",
        ".nan",
    ),
    *("1:30", "24:00:00", "-1", "+1", "08", "no", "No", "yes", "on", "OFF", "true", "False", "y", "=", "${x}", "???"),
    *(
        "\\${HOME}",
        "a,b",
        "a=b",
        "/a b/c",
        "C:\\x",
        "~/x",
        "~root",
        "nul",
        "None",
        "中文",
        "s3://b/2024_01_01",
        "<<",
        "a:b",
    ),
]


@dataclass
class Words:
    """A config with a setting of each type that text can end in."""

    text: str = setting("", "any text")
    second: str = setting("", "another")
    third: str = setting("", "another")
    fourth: str = setting("", "another")
    fifth: str = setting("", "another")
    word: Literal["no", "on", "1e3"] = setting("no", "words that YAML takes for others")
    ratio: float = setting(0.5, "a number")
    limit: float | None = setting(1.0, "a number, or none")
    count: int = setting(3, "a whole number")
    deep: bool = setting(False, "yes or no")


SCHEMAS = [Words, ClusterSpec, *(JOBS[name].load_schema() for name in ("preprocess", "train policy"))]


def texts_of(config: object) -> dict[str, str]:
    """The settings of a config that may hold any text, by name."""
    return {key.name: key.value for key in settings_of(config) if key.type is str and not key.choices}


def spread(texts: list[str], schema: type) -> Iterator[dict[str, str]]:
    """A text for each text setting of a schema, until all of them were used."""
    names = list(texts_of(schema()))
    for begin in range(0, len(texts), len(names)):
        yield dict(zip(names, texts[begin:], strict=False))


def from_file(schema: type[T], text: str, folder: Path) -> T:
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8", newline="")
    return configs.load(schema, [], str(file))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_hostile_text_arrives_in_every_text_setting_of_a_job(schema: type, tmp_path: Path) -> None:
    for texts in spread(HOSTILE, schema):
        config = configs.load(schema, [f"{name}={text}" for name, text in texts.items()])
        assert texts_of(config) == texts_of(schema()) | texts
        assert configs.load(schema, list(changed_settings(config))) == config, "as submit passes it on"
        assert from_file(schema, configs.to_yaml(config), tmp_path) == config, "as --print-config writes it"


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\0"), max_size=12), quotes=st.sampled_from(["'", '"', None]))
def test_any_text_arrives_from_words_and_from_files(text: str, quotes: str | None) -> None:
    assert configs.load(Words, [f"text={text}"]).text == text
    with tempfile.TemporaryDirectory() as folder:
        assert from_file(Words, yaml.safe_dump({"text": text}, default_style=quotes), Path(folder)).text == text
        assert from_file(Words, configs.to_yaml(Words(text)), Path(folder)).text == text


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_text_without_quotes_in_a_file_arrives_as_written(schema: type, tmp_path: Path) -> None:
    for texts in spread(PLAIN, schema):
        lines: list[str] = []
        for name, text in texts.items():  # section by section, as they stand in the schema
            *sections, last = name.split(".")
            lines += [f"{'  ' * depth}{section}:" for depth, section in enumerate(sections)]
            lines += [f"{'  ' * len(sections)}{last}: {text}"]
        lines = list(dict.fromkeys(lines))  # a section's line once
        assert texts_of(from_file(schema, "\n".join(lines), tmp_path)) == texts_of(schema()) | texts


def test_words_numbers_and_switches_of_a_file_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    read = from_file(Words, "word: 1e3\nratio: -.inf\nlimit: ~\ncount: 010\ndeep: on", tmp_path)
    assert read == Words(word="1e3", ratio=float("-inf"), limit=None, count=10, deep=True)
    assert read == configs.load(Words, ["word=1e3", "ratio=-inf", "limit=null", "count=010", "deep=on"])
    with pytest.raises(PipelineError, match=r"^count=0x10: a whole number expected, such as 3$"):
        from_file(Words, "count: 0x10", tmp_path)
    with pytest.raises(PipelineError, match=r"^word=off: must be one of no, on, 1e3$"):
        from_file(Words, "word: off", tmp_path)


def test_a_file_may_share_sections_by_anchors(tmp_path: Path) -> None:
    text = "decode: &nodes\n  nodes: 2\n  cpus: 8\ngpu:\n  <<: *nodes\n  nodes: 1\n  gpus: 1\n"
    spec = from_file(ClusterSpec, text, tmp_path)
    assert (spec.gpu.nodes, spec.gpu.cpus, spec.decode.nodes) == (1, 8, 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_printed_config_fits_the_stream_it_is_printed_to(encoding: str, tmp_path: Path) -> None:
    config = Words(text="中文 é \udcff")
    printed = configs.to_yaml(config, encoding).encode(encoding)
    assert from_file(Words, printed.decode(encoding), tmp_path) == config


@pytest.mark.parametrize("job", ["train policy", "train reconstructor", "rl"])
def test_a_dataset_may_have_a_comma_in_its_name(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    given: TrainConfig = configs.load(JOBS[job].load_schema(), ["data=a,b", "run=new,run"])
    assert given.datasets == given.loader_config.data == [str(tmp_path / "a,b")]
    absolute = configs.with_absolute_places(given)
    assert (absolute.datasets, absolute.run) == (given.datasets, str(tmp_path / "new,run"))
    monkeypatch.chdir("/")
    assert absolute.datasets == [str(tmp_path / "a,b")], "in a process of another folder"
