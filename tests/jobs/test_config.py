"""jobs.config: KEY=VALUE and YAML -> a typed config; every mistake is one line that says what to write instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import config as configs
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig


@dataclass
class Inner:
    frames: int = field(default=16, metadata={"help": "frames per clip"})
    fps: float = 0.0


@dataclass
class Example:
    """An example."""

    input: str = field(default="", metadata={"help": "where from"})
    threshold: float = 0.05
    deep: bool = False
    clip: Inner = field(default_factory=Inner)


def test_values_take_the_type_of_their_field() -> None:
    config = configs.load(Example, ["input=/data", "threshold=1e-2", "deep=true", "clip.frames=8", "clip.fps=5"])
    assert config == Example("/data", 0.01, True, Inner(8, 5.0))


@pytest.mark.parametrize(
    "path",
    [
        "/a b/ü.mp4",
        "s3://b/x=y",
        "123",
        "true",
        "a: b",
        "${input}",
        "[1, 2]",
        "null",
        "'quoted'",
        "~",
        "a,b",
        "",
        "#x",
        "${oc.env:HOME}",
    ],
)
def test_a_path_is_taken_as_it_stands(path: str) -> None:
    assert configs.load(Example, [f"input={path}"]).input == path


@pytest.mark.parametrize(
    "argument, told",
    [
        ("treshold=0.1", "treshold: no such key; did you mean threshold?"),
        ("frames=3", "frames: no such key; did you mean clip.frames?"),
        ("clip.frame=3", "clip.frame: no such key; did you mean clip.frames?"),
        ("zzz=1", "zzz: no such key; the keys are input, threshold, deep, clip.frames, clip.fps"),
        ("threshold=low", "threshold=low: a number expected, such as 0.05"),
        ("clip.frames=1.5", "clip.frames=1.5: a whole number expected, such as 16"),
        ("deep=maybe", "deep=maybe: true or false expected, such as False"),
        ("clip=3", "clip: no such key"),
        ("threshold", "threshold: expected KEY=VALUE; did you mean threshold=VALUE?"),
    ],
)
def test_each_mistake_is_one_line_naming_the_nearest_valid_key(argument: str, told: str) -> None:
    with pytest.raises(PipelineError) as error:
        configs.load(Example, [argument])
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words, told",
    [
        ("videos out", "videos: expected KEY=VALUE; did you mean input=videos output=out?"),
        ("input=videos out", "out: expected KEY=VALUE; did you mean output=out?"),
        ("output=out input= videos", "videos: expected KEY=VALUE; did you mean input=videos?"),
        ("clips output=out", "clips: expected KEY=VALUE; did you mean input=clips?"),
        ("input=videos output=out gro", "gro: expected KEY=VALUE; did you mean grow=VALUE?"),
        ("input=videos output=out fps", "fps: expected KEY=VALUE; did you mean clip.fps?"),
    ],
)
def test_words_without_a_key_are_told_which_key_they_may_be_of(words: str, told: str) -> None:
    with pytest.raises(PipelineError) as error:
        configs.load(PreprocessConfig, words.split())
    assert str(error.value) == told


@dataclass
class Limits:
    threshold: float | None = None
    max_ratio: float | None = 0.75


@pytest.mark.parametrize("text", ["null", "NULL", "", " "])
def test_a_number_may_be_left_open_where_the_config_says_so(text: str) -> None:
    assert configs.load(Limits, [f"max_ratio={text}"]) == Limits(None, None)
    assert configs.load(Limits, ["threshold=0.7"]) == Limits(0.7, 0.75)
    with pytest.raises(PipelineError, match="threshold=: a number expected"):
        configs.load(Example, ["threshold="])


def test_what_is_neither_a_number_nor_left_open_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for arguments, text in ((["threshold=low"], ""), ([], "threshold: low")):
        file.write_text(text)
        with pytest.raises(PipelineError) as error:
            configs.load(Limits, arguments, str(file))
        assert str(error.value) == "threshold=low: a number expected (or null)"
    file.write_text("threshold: null\nmax_ratio:\n")
    assert configs.load(Limits, [], str(file)) == Limits(None, None)


def test_arguments_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: /from/file\nclip:\n  frames: 8\n  fps: 2\n")
    assert configs.load(Example, ["clip.frames=4"], str(file)) == Example("/from/file", 0.05, False, Inner(4, 2.0))


@pytest.mark.parametrize(
    "text, told",
    [
        ("clip: {frame: 3}", "clip.frame: no such key; did you mean clip.frames?"),
        ("clip: [1]", "clip: no such key"),
        ("a: [", "not YAML"),
        ("just text", "expected keys and values"),
        ("threshold: [1, 2]", "threshold: a number expected, not a list"),
        ("input: {a: b}", "input: text expected, not keys"),
        ("input: a\ninput: b", "not YAML: input is given twice"),
        ("input: null", "input: null: is that a word, or nothing? write 'null' or '', with the quotes"),
        ("input: ~", "input: ~: is that a word, or nothing? write '~' or '', with the quotes"),
        ("clip: &c {x: *c}", "not YAML: nested too deeply, or in itself"),
        ("[" * 700, "not YAML: nested too deeply, or in itself"),
        ('input: "a\\0b"', "input: holds a NUL character"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(PipelineError) as error:
        configs.load(Example, [], str(file))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="No such file"):
        configs.load(Example, [], str(tmp_path / "nothing.yaml"))


def test_printed_yaml_reads_back_as_the_same_config(tmp_path: Path) -> None:
    config = Example("/ü: ${x} #1", 0.07, True, Inner(4, 2.5))
    file = tmp_path / "job.yaml"
    file.write_text(configs.to_yaml(config), encoding="utf-8")
    assert configs.load(Example, [], str(file)) == config
    assert "# where from" in file.read_text()


def test_a_bare_argument_sets_the_positional_key(tmp_path: Path) -> None:
    assert configs.load(Example, ["/data/x"], positional="input").input == "/data/x"
    odd = tmp_path / "a=b.mp4"
    odd.write_bytes(b"")
    assert configs.load(Example, [str(odd), "threshold=0.1"], positional="input").input == str(odd)
    with pytest.raises(PipelineError, match="expected KEY=VALUE"):
        configs.load(Example, ["/data/x", "/data/y"], positional="input")
