"""A path means the folder that a command is typed in, whichever process reads it later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.cli import JOBS
from jobs.config import load, with_absolute_places
from pipelines.schema import Setting, settings_of
from tests.pipelines.networks.test_find import a_run

# Words that help of a text setting uses when it names a place.
_SAYS_PLACE = re.compile(r"\b(folder|file|files|s3://|prefix|run that|manifest goes|where the)\b")


def text_settings(job: str) -> list[Setting]:
    return [key for key in settings_of(JOBS[job].load_schema()()) if key.type is str and not key.choices]


@pytest.mark.parametrize("job", JOBS)
def test_every_path_of_a_job_is_made_absolute(job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run(tmp_path / "nets" / "policy")
    a_run(tmp_path / "nets" / "reconstructor", "reconstructor")
    a_run(tmp_path / "nets" / "encoder", "encoder")
    monkeypatch.chdir(tmp_path)
    keys = [key for key in text_settings(job) if key.place != "no"]
    networks = ("policy", "reconstructor", "encoder", "checkpoint")
    given = {key.name: f"nets/{key.place}" if key.place in networks else f"some/{key.name}" for key in keys}
    (tmp_path / "nets" / "checkpoint").mkdir()
    config = with_absolute_places(load(JOBS[job].load_schema(), [f"{name}={text}" for name, text in given.items()]))
    monkeypatch.chdir("/")
    for key in settings_of(config):
        if key.name in given:
            assert key.value.startswith(f"{tmp_path}/{given[key.name]}"), key.name
    again = with_absolute_places(config)
    assert again == config, "once absolute, a place stays"


@pytest.mark.parametrize("job", JOBS)
def test_a_setting_whose_help_names_a_place_is_declared_as_one(job: str) -> None:
    for key in text_settings(job):
        if _SAYS_PLACE.search(key.help) and not key.name.startswith("ray."):
            assert key.place != "no", f"{key.name}: {key.help}"


def test_several_places_keep_their_commas_and_one_with_a_comma_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    schema = JOBS["train policy"].load_schema()
    config = with_absolute_places(load(schema, ["data=x,s3://bucket/y", "run=runs/1,2"]))
    assert config.data == f"{tmp_path}/x,s3://bucket/y" and config.run == f"{tmp_path}/runs/1,2"
    assert with_absolute_places(load(schema, ["data=a,b"])).data == f"{tmp_path}/a,b"


def test_a_hub_id_and_the_name_of_a_reconstructor_are_no_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "canvas").mkdir()
    monkeypatch.chdir(tmp_path)
    config = with_absolute_places(load(JOBS["rl"].load_schema(), ["init=nvidia/AutoGaze"]))
    assert config.init == "nvidia/AutoGaze" and config.reconstructor == "canvas"
