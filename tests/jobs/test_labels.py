"""autogaze export-labels and import-labels: what goes out comes back the same, and what does not fit is named."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autogaze.gaze import Gaze
from jobs import cli
from jobs import labels as job
from jobs import verify as verify_job
from jobs.labels import ExportConfig, ImportConfig
from jobs.verify import VerifyConfig
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.inspection.verify import verify
from pipelines.labels import files as label_files
from pipelines.labels import into_dataset
from pipelines.labels import keys as label_keys
from pipelines.labels.kept import KeptLabels
from pipelines.storage import store
from pipelines.storage.location import Location

pytestmark = pytest.mark.usefixtures("one_thread")

Write = Callable[[dict[str, Any], str], str]


@pytest.fixture(scope="module")
def dataset(gazed_dataset: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight clips of three frames in three shards, the second of them failed."""
    return gazed_dataset(tmp_path_factory.mktemp("labels") / "gaze", storage="jpeg")


@pytest.fixture(scope="module")
def exported(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The label file of `dataset`, and what was printed."""
    path, console = tmp_path_factory.mktemp("out") / "deep" / "labels.json", Console(file=io.StringIO(), width=200)
    assert job.export(ExportConfig(data=dataset, output=str(path)), console) == 0
    return path, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(entries: dict[str, Any], name: str = "labels.json") -> str:
        (tmp_path / name).write_text(json.dumps(entries))
        return str(tmp_path / name)

    return write


def bring_in(dataset: str, files: str, output: Path, **settings: Any) -> str:
    """Import; what was printed."""
    console = Console(file=io.StringIO(), width=200)
    config = ImportConfig(labels=files, data=dataset, output=str(output), **settings)
    assert job.import_(config, console) == 0
    return console.file.getvalue()  # type: ignore[attr-defined]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_exported_file_is_what_the_reference_reads(exported: tuple[Path, str], dataset: str) -> None:
    entries = json.loads(exported[0].read_text())
    index = shards.open_dataset(dataset).index().query("outcome == 'ok'").to_dict("records")
    assert len(entries) == len(index) == 7
    for row in index:
        key = f"corpus/train/{row['video'].rsplit('/', 1)[-1]}" + (f"#{row['start']}" if row["start"] else "")
        gaze = Gaze.from_npz(shards.open_dataset(dataset).read_clip(row)["gaze.npz"])
        assert {name: entries[key][name] for name in ("gazing_pos", "task_losses")} == gaze.to_label(0)
        assert (entries[key]["start"], entries[key]["stride"]) == (row["start"], 1)
    assert "7 labels" in exported[1] and "left out: 1 clip is failed" in exported[1]
    assert [path.name for path in exported[0].parent.iterdir()] == ["labels.json"]


def test_what_is_exported_comes_back_as_the_same_gaze(exported: tuple[Path, str], dataset: str, tmp_path: Path) -> None:
    bring_in(dataset, str(exported[0]), tmp_path / "new")
    new, old = tree(tmp_path / "new"), tree(Path(dataset))
    differing = {name for name in new.keys() | old.keys() if new.get(name) != old.get(name)}
    assert differing == {"dataset.json"}  # every gaze, frame, index and failed row is byte for byte the same
    about = json.loads(new["dataset.json"])
    digest = hashlib.sha256(exported[0].read_bytes()).hexdigest()
    assert about["models"] == {"labels": {"labels.json": digest}}
    assert about["config"]["gaze"] == "labels" and about["units"] == json.loads(old["dataset.json"])["units"]
    assert verify(str(tmp_path / "new")).problems == []


def test_slots_a_policy_left_unused_survive_the_round_trip(dataset: str, tmp_path: Path, write: Write) -> None:
    entry = {
        "gazing_pos": [[5, 7], [], [530]],
        "task_losses": [[0.5, 0.25], [], [0.1]],
        "initial_losses": [1.0, 0.25, 0.2],
        "places": [[0, 3], [], [2]],
        "slots": [4, 1, 3],
    }
    bring_in(dataset, write({"corpus/train/v0.mp4": entry}, "a.json"), tmp_path / "new")
    job.export(ExportConfig(data=str(tmp_path / "new"), output=str(tmp_path / "b.json")), Console(file=io.StringIO()))
    back = json.loads((tmp_path / "b.json").read_text())["corpus/train/v0.mp4"]
    assert {name: back[name] for name in ("gazing_pos", "places", "slots")} == {
        name: entry[name] for name in ("gazing_pos", "places", "slots")
    }


def plain(first: int = 0) -> dict[str, Any]:
    """A label of three frames as the reference writes it: ids and losses alone."""
    return {"gazing_pos": [[first, 4], [265], [530 + 69]], "task_losses": [[0.2, 0.1], [0.09], [0.01]]}


def test_clips_without_a_label_are_filtered_and_the_rest_is_sound(dataset: str, tmp_path: Path, write: Write) -> None:
    # Keys are cut to their last three parts, as the reference cuts them; v1 and other videos are of no use here.
    files = write({"/else/where/corpus/train/v0.mp4": plain(), "corpus/train/v2.mp4#3": plain(1), "x/y/z.mp4": {}})
    printed = bring_in(dataset, files, tmp_path / "new")
    index = shards.open_dataset(str(tmp_path / "new")).index()
    outcome = dict(zip(index["video"].str[-6:-4] + "@" + index["start"].astype(str), index["outcome"], strict=True))
    assert outcome == {"v0@0": "ok", "v0@3": "failed", "v2@3": "ok"} | {
        f"v{n}@{start}": "filtered" for n, start in ((1, 0), (1, 3), (2, 0), (3, 0), (3, 3))
    }
    left = index[index["outcome"] == "filtered"]
    assert set(left["reason"]) == {"no_label"} and "corpus/train/v1.mp4#3" in " ".join(left["detail"])
    assert index[index["outcome"] == "ok"]["loss"].tolist() == pytest.approx([0.2 / 3, 0.2 / 3])
    verdict = verify(str(tmp_path / "new"))
    assert (verdict.problems, verdict.ok, verdict.filtered, verdict.failed) == ([], 2, 5, 1)
    assert "2 clips ok, 5 clips filtered, 1 clip failed" in printed
    assert "not used: 1 label of" in printed and "do not say their units" in printed
    # What was filtered stays so in a dataset that is made from this one, and verify says how many are.
    bring_in(str(tmp_path / "new"), files, tmp_path / "again")
    assert shards.open_dataset(str(tmp_path / "again")).index().equals(index)
    told = Console(file=io.StringIO(), width=200)
    assert verify_job.run(VerifyConfig(str(tmp_path / "again")), told) == 0
    assert "(2 ok, 5 filtered, 1 failed)" in told.file.getvalue()  # type: ignore[attr-defined]


def test_an_import_says_what_it_is_made_of_and_keeps_what_its_targets_are_of(dataset: str) -> None:
    there = shards.open_dataset(dataset)
    facts = {"fingerprint": "f", "teachers": ["siglip2"]}
    there.about["models"] = {"videomae": {"fingerprint": "v"}, "targets": facts}
    with label_files.Labels(KeptLabels(there.plan), files={"labels.json": "abc"}, units="u") as labels:
        about = into_dataset.describe_import(there, labels, 0.1)
    assert about["models"] == {"targets": facts, "labels": {"labels.json": "abc"}} and about["units"] == "u"
    kept = there.about["config"] | {"gaze": "labels", "threshold": 0.1, "max_ratio": None}
    assert about["config"] == kept and about["plan"] == there.about["plan"]


def test_an_import_that_was_cut_short_is_finished_by_the_same_command(
    exported: tuple[Path, str], dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in(dataset, str(exported[0]), tmp_path / "whole")
    publish = store.publish

    def dies_between_tar_and_index(data: bytes, url: str) -> None:
        if url.endswith("index/000001.parquet"):
            raise KeyboardInterrupt
        publish(data, url)

    monkeypatch.setattr(store, "publish", dies_between_tar_and_index)
    with pytest.raises(KeyboardInterrupt):
        bring_in(dataset, str(exported[0]), tmp_path / "new", threads=1)
    monkeypatch.undo()
    assert (tmp_path / "new" / "shards" / "000001.tar").exists()
    assert 1 not in shards.committed_shards(str(tmp_path / "new"))
    (tmp_path / "new" / "shards" / ".tmp-left").write_bytes(b"half")
    bring_in(dataset, str(exported[0]), tmp_path / "new")
    assert tree(tmp_path / "new") == tree(tmp_path / "whole")
    assert "nothing to do" in bring_in(dataset, str(exported[0]), tmp_path / "new")


def test_several_files_are_one_unless_they_disagree(dataset: str, tmp_path: Path, write: Write) -> None:
    write({"corpus/train/v0.mp4": plain(), "corpus/train/v2.mp4": plain(2)}, "a.json")
    write({"corpus/train/v2.mp4": plain(2), "corpus/train/v3.mp4": plain(3)}, "b.json")
    bring_in(dataset, f"{tmp_path}/[ab].json", tmp_path / "new")
    assert shards.open_dataset(str(tmp_path / "new")).index()["outcome"].tolist().count("ok") == 3
    assert set(json.loads((tmp_path / "new" / "dataset.json").read_text())["models"]["labels"]) == {"a.json", "b.json"}
    write({"corpus/train/v0.mp4": plain(1)}, "c.json")
    with pytest.raises(PipelineError, match=r"c\.json: corpus/train/v0\.mp4: has two labels that differ"):
        bring_in(dataset, f"{tmp_path}/a.json,{tmp_path}/c.json", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def broken(**changes: Any) -> str:
    return json.dumps({"corpus/train/v0.mp4": plain() | changes})


@pytest.mark.parametrize(
    "text, told",
    [
        (broken()[:-20], "not a JSON object of labels"),
        ("[1, 2]", "expected {"),
        ('{"x": {}} {}', "more text after the object"),
        ('{"corpus/train/v0.mp4" {}}', "expected :"),
        ('{"corpus/train/v0.mp4": 3}', "corpus/train/v0.mp4: a label is an object"),
        (broken(gazing_pos=[[0, 4], [265]]), "corpus/train/v0.mp4: gazing_pos has 2 frames, the clip 3"),
        (broken(gazing_pos="none"), "corpus/train/v0.mp4: gazing_pos must be"),
        (broken(gazing_pos=[[0, 265], [265], [530]]), "frame 0 holds id 265; its ids are 0..264"),
        (broken(gazing_pos=[[0, -1], [265], [530]]), "frame 0 holds id -1"),
        (broken(gazing_pos=[[0, 1.5], [265], [530]]), "frame 0 holds id 1.5"),
        (broken(gazing_pos=[[0, True], [265], [530]]), "frame 0 holds id true"),
        (broken(gazing_pos=[[0], [265], [530]]), "frame 0 has 1 ids and 2 losses"),
        (broken(gazing_pos=[[0, 4], [], [530]], task_losses=[[1, 1], [], [1]]), "frame 1 has no id"),
        (broken(task_losses=[[0.1, float("nan")], [0.1], [0.1]]), "a loss is NaN"),
        (broken(task_losses=[[0.1, 1e39], [0.1], [0.1]]), "a loss is 1e+39, which is no number that float32 holds"),
        (broken(task_losses=[[0.1, 10**400], [0.1], [0.1]]), "a loss is 1000000"),
        (broken(places=[[0, 1e39], [0], [0]], slots=[2, 1, 1]), "places and slots hold 1e+39"),
        (broken(task_losses=[[0.1, "X"], [0.1], [0.1]]).replace('"X"', "1" * 5000), "not a JSON object of labels"),
        (broken(initial_losses=[0.1]), "corpus/train/v0.mp4: initial"),
        (broken(stride=4), "has stride 4, the dataset 1"),
        (broken(scales=[64, 128]), "has scales"),
        (broken(units="miles"), "threshold= is missing"),
        ("{}", "none is of a clip of"),
        ('{"a/b/c/d.mp4": {}}', "in the labels b/c/d.mp4"),
    ],
)
def test_a_label_that_does_not_fit_is_named_in_one_line_and_nothing_is_written(
    text: str, told: str, dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "l.json").write_text(text)
    assert cli.main(["import-labels", f"{tmp_path}/l.json", f"data={dataset}", f"output={tmp_path}/new"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_other_mistakes_are_one_line_too(
    exported: tuple[Path, str],
    dataset: str,
    gazed_dataset: Callable[..., str],
    tmp_path: Path,
    write: Write,
) -> None:
    file = str(exported[0])
    bring_in(dataset, file, tmp_path / "new")
    for files, output, told in (
        (write({"corpus/train/v0.mp4": plain()}, "o.json"), "new", "differs in its label files, units"),
        (f"{tmp_path}/none*.json", "x", "no such file"),
        (str(tmp_path), "x", "a folder"),
        ("", "x", "labels= is missing"),
        (file, dataset, "one place"),
    ):
        with pytest.raises(PipelineError, match=told):
            bring_in(dataset, files, tmp_path / output)
    half = gazed_dataset(tmp_path / "half")
    shards.uncommit_shards(half, [1])
    with pytest.raises(PipelineError, match="3 of its 4 shards are committed"):
        bring_in(half, file, tmp_path / "x")
    failed = gazed_dataset(tmp_path / "failed", videos=1, failing=(0, 1))
    with pytest.raises(PipelineError, match="no clip in it can be a label"):
        job.export(ExportConfig(data=failed, output=str(tmp_path / "f.json")), Console(file=io.StringIO()))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".tmp", "f.json", "x"))]


def test_two_videos_with_one_key_are_refused_by_name(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    plan = shards.open_dataset(gazed_dataset(tmp_path / "gaze", videos=2, failing=())).plan
    videos = [uri.replace("/data/corpus/train/v1", "/other/corpus/train/v0") for uri in plan.uris()]
    with pytest.raises(PipelineError, match=r"/data/corpus/train/v0\.mp4 and /other/corpus/train/v0\.mp4 have one"):
        label_keys.require_distinct(lambda: videos)
    label_keys.require_distinct(lambda: [*plan.uris(), *plan.uris()])  # one video, twice


def test_keys_are_those_that_gaze_writes() -> None:
    from jobs.pictures.gaze_files import LabelWriter

    sink = io.StringIO()
    writer = LabelWriter(sink, label_keys.video_key("/a/b/c/d.mp4"))
    for start, tile in ((0, ""), (16, ""), (0, "r00c01"), (16, "r00c01")):
        writer.add(start, {}, tile)
    writer.close()
    keys = [label_keys.clip_key("/a/b/c/d.mp4", s, t) for s, t in ((0, ""), (16, ""), (0, "r00c01"), (16, "r00c01"))]
    assert list(json.loads(sink.getvalue())) == keys


def test_labels_go_to_s3_and_come_from_there(bucket: str, exported: tuple[Path, str], dataset: str) -> None:
    job.export(ExportConfig(data=dataset, output=f"{bucket}/out/labels.json"), Console(file=io.StringIO()))
    assert store.read(f"{bucket}/out/labels.json") == exported[0].read_bytes()
    console = Console(file=io.StringIO())
    job.import_(ImportConfig(f"{bucket}/out/*.json", dataset, f"{bucket}/new"), console)
    assert verify(f"{bucket}/new").problems == []
    assert into_dataset.begin(shards.open_dataset(dataset), Location(f"{bucket}/new"), json_of(f"{bucket}/new")) == []


def json_of(place: str) -> dict[str, Any]:
    return json.loads(store.read(f"{place}/dataset.json"))
