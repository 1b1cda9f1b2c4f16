"""The dataset format, its commit rule, and what verify says of every kind of damage."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autogaze.gaze import Gaze
from pipelines.corpus.plan import PLAN_SCHEMA
from pipelines.dataset import shards
from pipelines.dataset.frames import decode_frames, encode_frames
from pipelines.dataset.shards import Outcome, build_shard, commit_shard, open_dataset, uncommit_shards
from pipelines.errors import PipelineError
from pipelines.inspection.verify import verify
from pipelines.storage import store
from tests.support import training
from tests.support.plain_plan import plan_bytes

CLIPS, FRAMES = 3, 4


def plan_rows(shard: int) -> pd.DataFrame:
    rows = [
        {
            "clip": f"v-{shard}-{position:06d}",
            "shard": shard,
            "position": position,
            "video": "/videos/<v>.mp4",
            "object": "/videos/<v>.mp4",
            "offset": 0,
            "bytes": 10,
            "fingerprint": "f",
            "start": position * FRAMES,
            "stride": 1,
            "frames": FRAMES,
            "padded": 0,
            "video_frames": 100,
            "fps": 25.0,
            "width": 64,
            "height": 48,
            "tile": "",
            "reason": None,
            "detail": None,
        }
        for position in range(CLIPS)
    ]
    return pd.DataFrame(rows, columns=PLAN_SCHEMA.names)


def some_gaze(seed: int) -> Gaze:
    random = np.random.default_rng(seed)
    clip = [random.permutation(265)[: random.integers(0, 20)].tolist() for _ in range(FRAMES)]
    losses = [np.sort(random.random(len(frame)))[::-1].tolist() for frame in clip]
    return Gaze.from_lists([clip], losses=[losses], initial=[[1.0] * FRAMES])


def outcomes(shard: int, storage: str = "jpeg") -> list[Outcome]:
    frames = np.random.default_rng(shard).integers(0, 255, (FRAMES, 224, 224, 3), np.uint8)
    encoded = encode_frames(frames, storage, 90)
    return [Outcome(some_gaze(shard), encoded), Outcome(reason="truncated"), Outcome(some_gaze(shard + 50), encoded)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two committed shards of three clips, the middle one failed."""
    plan = pd.concat([plan_rows(0), plan_rows(1)], ignore_index=True)
    data = plan_bytes(plan)
    about = {"format": 2, "config": {"frames": "jpeg", "threshold": 0.05}, "plan": hashlib.sha256(data).hexdigest()}
    store.publish(data, str(tmp_path / "plan.parquet"))
    store.publish(json.dumps(about).encode(), str(tmp_path / "dataset.json"))
    for shard in range(2):
        commit_shard(str(tmp_path), shard, *build_shard(plan_rows(shard), outcomes(shard), 0.05))
    return tmp_path


def test_the_bytes_of_a_shard_are_a_function_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_shard(plan_rows(3), outcomes(3), 0.05)
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert build_shard(plan_rows(3), outcomes(3), 0.05) == first
    with tarfile.open(fileobj=io.BytesIO(first[0])) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.isreg()) == (0, 0, 0, "", True)


@pytest.mark.parametrize("storage", ["jpeg", "raw", "none"])
def test_frames_come_back_as_they_were_stored(storage: str) -> None:
    frames = np.tile(np.arange(224, dtype=np.uint8)[None, :, None, None], (12, 1, 224, 3))
    back = decode_frames(dict(encode_frames(frames, storage, 90)))
    if storage == "none":
        assert back is None
    else:
        assert back is not None and back.shape == frames.shape and back.dtype == np.uint8
        assert np.abs(back.astype(int) - frames).max() <= (0 if storage == "raw" else 4)


def test_the_index_has_one_row_per_planned_clip_with_its_outcome_and_statistics(dataset: Path) -> None:
    index = open_dataset(str(dataset)).index()
    assert index["clip"].tolist() == [f"v-{s}-{p:06d}" for s in range(2) for p in range(CLIPS)]
    assert index["outcome"].tolist() == ["ok", "failed", "ok"] * 2
    assert index["reason"].fillna("").tolist() == ["", "truncated", ""] * 2
    gaze = some_gaze(0)
    row = index.iloc[0]
    assert row["tokens"] == int(gaze.counts()[0])
    assert row["ratio"] == pytest.approx(row["tokens"] / (FRAMES * 265))
    assert row["loss"] == pytest.approx(float(gaze.final().mean()))
    assert row["met"] == pytest.approx(float((gaze.final() <= 0.05).float().mean()))
    assert index[index["outcome"] == "failed"][["tokens", "loss", "offset", "sha256"]].isna().all(axis=None)


def test_a_clip_left_out_on_purpose_is_filtered_and_not_failed(dataset: Path) -> None:
    made = [Outcome(reason="no_label", detail="left out", filtered=True), *outcomes(1)[1:]]
    commit_shard(str(dataset), 1, *build_shard(plan_rows(1), made, 0.05))
    index = open_dataset(str(dataset)).index([1])
    assert index["outcome"].tolist() == [outcome.name for outcome in made] == ["filtered", "failed", "ok"]
    assert index.iloc[0][["reason", "detail"]].tolist() == ["no_label", "left out"]
    verdict = verify(str(dataset))
    assert (verdict.problems, verdict.ok, verdict.filtered, verdict.failed) == ([], 3, 1, 2)


def test_a_clip_is_read_by_its_byte_range_alone(dataset: Path) -> None:
    opened = open_dataset(str(dataset))
    for row in opened.index().query("outcome == 'ok'").to_dict("records"):
        members = opened.read_clip(row)
        gaze = Gaze.from_npz(io.BytesIO(members["gaze.npz"]))
        assert int(gaze.counts()[0]) == row["tokens"]
        assert json.loads(members["json"])["clip"] == row["clip"]
        frames = decode_frames(members)
        assert frames is not None and frames.shape == (FRAMES, 224, 224, 3)


def test_plain_webdataset_reads_the_tars(dataset: Path) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(str(dataset / "shards" / "000000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == ["v-0-000000", "v-0-000002"]
    for sample in samples:
        assert sample["json"]["outcome"] == "ok"
        assert sample["00.jpg"].shape == (224, 224, 3) and sample["00.jpg"].dtype == np.uint8
        arrays = sample["gaze.npz"]
        assert arrays["tokens"].dtype == np.uint16 and arrays["lengths"].sum() == len(arrays["tokens"])
        assert arrays["losses"].dtype == np.float32 and arrays["initial"].dtype == np.float32


def test_plain_pandas_reads_plan_and_index(dataset: Path) -> None:
    index = pd.read_parquet(dataset / "index")
    plan = pd.read_parquet(dataset / "plan.parquet")
    assert sorted(index["clip"]) == sorted(plan["clip"])


def test_a_shard_without_its_index_does_not_exist(dataset: Path) -> None:
    (dataset / "index" / "000001.parquet").unlink()
    opened = open_dataset(str(dataset))
    assert opened.committed() == [0] and len(opened.index()) == CLIPS


def test_taking_a_shard_back_removes_the_index_first(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(store, "remove", removed.append)
    uncommit_shards(str(dataset), [1])
    assert [Path(url).parent.name for url in removed] == ["index", "shards"]


def test_a_sound_dataset_verifies(dataset: Path) -> None:
    verdict = verify(str(dataset))
    assert (verdict.problems, verdict.clips, verdict.ok, verdict.failed) == ([], 6, 4, 2)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite_index(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    frame = change(pq.read_table(path).to_pandas())
    pq.write_table(pa.Table.from_pandas(frame, schema=shards.INDEX_SCHEMA, preserve_index=False), path)


def drop_row(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[:-1]


def swap_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[[1, 0, 2]]


def lie_about_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(tokens=frame["tokens"] + 1)


def lie_about_loss(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(loss=frame["loss"] / 2)


def make_an_outcome_up(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(outcome=frame["outcome"].replace("failed", "lost"))


def forget_the_reason(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(reason=None)


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda d: flip(d / "shards" / "000001.tar", 3000), "bytes differ from the hash"),
        (lambda d: (d / "shards" / "000001.tar").unlink(), "shard 1: its tar is missing"),
        (lambda d: (d / "index" / "000001.parquet").unlink(), "shard 1: not committed (3 clips missing)"),
        (lambda d: (d / "index" / "000001.parquet").write_bytes(b"x"), "damaged, or not an index"),
        (lambda d: (d / "shards" / "000009.tar").write_bytes(b""), "shards/000009: not part of this dataset"),
        (lambda d: (d / "index" / "000009.parquet").write_bytes(b""), "shard 9: committed but not planned"),
        (lambda d: flip(d / "plan.parquet", 200), "plan.parquet"),
        (
            lambda d: (d / "shards" / "000001.tar").write_bytes((d / "shards" / "000001.tar").read_bytes()[:-20000]),
            "bytes",
        ),
        (
            lambda d: (d / "shards" / "000001.tar").write_bytes((d / "shards" / "000001.tar").read_bytes() + b"more"),
            "does not end as an archive",
        ),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", drop_row), "3 clips planned, 2 rows"),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", swap_rows), "column clip of its index differs"),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", lie_about_tokens), "tokens"),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", lie_about_loss), "mean final error"),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", forget_the_reason), "failed without a reason"),
        (lambda d: rewrite_index(d / "index" / "000001.parquet", make_an_outcome_up), "outcome lost, which is none of"),
    ],
)
def test_verify_says_what_is_wrong(dataset: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(dataset)
    try:
        problems = verify(str(dataset)).problems
    except PipelineError as error:
        problems = [str(error)]
    assert any(told in problem for problem in problems), problems
    assert not any("shard 0" in problem for problem in problems), "the other shard is not blamed"


def test_verify_without_threads_is_one_clear_line(dataset: Path) -> None:
    with pytest.raises(PipelineError, match="threads=0: must be at least 1"):
        verify(str(dataset), threads=0)


def test_verify_without_a_dataset_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no dataset here"):
        verify(str(tmp_path))


def test_plain_pandas_reads_an_index_on_s3_where_it_lies(bucket: str, tmp_path: Path) -> None:
    """As docs/formats.md shows; pandas goes through s3fs, and nothing of ours."""
    url = training.write_dataset(tmp_path / "data", clips=8)
    for path in sorted((tmp_path / "data" / "index").iterdir()):
        store.publish(path.read_bytes(), f"{bucket}/index/{path.name}")
    there = pd.read_parquet(f"{bucket}/index")
    pd.testing.assert_frame_equal(there, pd.read_parquet(f"{url}/index"))
