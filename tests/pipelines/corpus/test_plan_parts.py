"""The plan that is computed shard by shard equals the plan written out row by row."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus.manifest import MANIFEST_SCHEMA, in_parts
from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.plan_part import Outline, PlanPart
from pipelines.corpus.plan_reader import RowPlan, open_plan
from pipelines.corpus.plan_writer import write_plan
from pipelines.corpus.planning import Planner
from pipelines.errors import PipelineError
from pipelines.storage import tables
from tests.support.plain_plan import make_plan, plan_bytes
from tests.support.plans import about_of, manifest_of, plan_of

VIDEOS = st.lists(
    st.tuples(
        st.integers(0, 90),  # frames
        st.sampled_from([0.0, 5.0, 24.0, 59.94]),
        st.sampled_from([(64, 48), (500, 230), (700, 700)]),
        st.sampled_from([0, 90, 180]),
        st.booleans(),  # fails
        st.booleans(),  # remote
    ),
    min_size=1,
    max_size=12,
)
CLIPS = st.builds(
    ClipConfig,
    frames=st.integers(1, 9),
    stride=st.integers(1, 3),
    per_video=st.sampled_from([0, 1, 4, 1000]),
    min_frames=st.sampled_from([1, 20]),
    tiles=st.sampled_from(["whole", "native"]),
) | st.builds(ClipConfig, frames=st.integers(1, 9), fps=st.sampled_from([1.0, 7.5, 1e-320]))


def manifest_with(videos: list[tuple[int, float, tuple[int, int], int, bool, bool]]) -> pd.DataFrame:
    rows = []
    for number, (frames, fps, (width, height), rotation, fails, remote) in enumerate(videos):
        place = ("s3://b/v" if remote else "/v") + f"/{number % 3}/{number:02d}.mp4"
        facts = {"frames": frames, "fps": fps, "width": width, "height": height, "rotation": rotation}
        failed = {"status": "failed", "reason": "unreadable", "detail": "it is"} if fails else {}
        rows.append({"uri": place, "object": place} | facts | failed)
    return manifest_of(rows)


def parts_of(manifest: pd.DataFrame, clip: ClipConfig, room: int, part_videos: int) -> list[PlanPart]:
    planner = Planner("/v", clip, room)
    ordered = tables.as_table(manifest.sort_values(["object", "uri"]), MANIFEST_SCHEMA)
    return [planner.part(part) for part in in_parts([ordered], part_videos)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(VIDEOS, CLIPS, st.integers(1, 25), st.sampled_from([1, 3, 1000]))
def test_it_is_the_plan_written_out_row_by_row(videos: list, clip: ClipConfig, room: int, part_videos: int) -> None:
    manifest = manifest_with(videos)
    plain = make_plan(manifest, "/v", clip, room, part_videos)
    parts, shard, rows = parts_of(manifest, clip, room, part_videos), 0, []
    for part in parts:
        for _ in range(len(part.outline().clips)):
            rows.append(part.clips_of(shard))
            shard += 1
    computed = pd.concat(rows, ignore_index=True)
    pd.testing.assert_frame_equal(computed, plain)
    first = [clip for part in parts for clip in part.table["clip"].to_pylist()]
    uris = [uri for part in parts for uri in part.table["video"].to_pylist()]
    begins = plain.drop_duplicates("video").index.tolist()
    assert first == begins and uris == plain["video"].drop_duplicates().tolist()
    # Straddling videos and the outline, against plain counting.
    several = plain.groupby("video")["shard"].nunique()
    for number, part in enumerate(parts):
        before = sum(len(each.outline().clips) for each in parts[:number])
        for shard in range(before, before + len(part.outline().clips)):
            here = plain[plain["shard"] == shard]["video"]
            assert part.straddling(shard) == {video for video in here if several[video] > 1}
    outline = Outline.joined([part.outline() for part in parts])
    by_shard = plain.groupby("shard")
    assert outline.clips.tolist() == by_shard.size().tolist()
    assert outline.refused.tolist() == by_shard["reason"].count().tolist()
    assert outline.videos(range(len(outline.clips))) == len(videos)
    middle = range(len(outline.clips) // 2, len(outline.clips))
    assert outline.videos(middle) == plain[plain["shard"] >= middle.start]["video"].nunique()
    cut = plain[plain["video"].map(several) > 1]["object"]
    assert outline.remote == cut.str.startswith("s3://").any()


def test_whole_videos_share_a_shard_while_they_fit_and_a_longer_one_begins_its_own() -> None:
    frames = [8, 8, 16, 60, 4, 12]
    videos = [{"uri": f"/v/{name}.mp4", "frames": count} for name, count in zip("abcdef", frames, strict=True)]
    manifest = manifest_of(videos)
    [part] = parts_of(manifest, ClipConfig(frames=4), 5, 1000)
    held = [part.clips_of(shard)["video"].str[3].tolist() for shard in range(len(part.outline().clips))]
    assert held == [["a"] * 2 + ["b"] * 2, ["c"] * 4, *[["d"] * 5] * 3, ["e"] + ["f"] * 3]


def test_a_job_that_plans_the_same_again_leaves_the_plan_whole_for_one_that_works_by_it(tmp_path: Path) -> None:
    manifest = manifest_of([{"uri": f"/v/{n:02d}.mp4", "frames": 5 * n} for n in range(20)])
    plan = plan_of(tmp_path, manifest, "/v", ClipConfig(frames=4), 6, part_videos=8)
    ordered, looked = tables.as_table(manifest, MANIFEST_SCHEMA), 0

    def scanned() -> Iterator[pa.Table]:
        nonlocal looked
        for start in range(0, 20, 2):
            assert open_plan(str(tmp_path), about_of(plan)).damage() == []
            looked += 1
            yield ordered.slice(start, 2)

    extra = tmp_path / "plan.parquet" / "000009.parquet"  # of a longer plan, whose planner was killed
    extra.write_bytes(b"")
    write_plan(str(tmp_path), Planner("/v", ClipConfig(frames=4), 6), scanned(), part_videos=8)
    assert looked == 10 and not extra.exists() and plan.damage() == []


def test_any_machine_reads_the_clips_of_any_shard(tmp_path: Path) -> None:
    manifest = manifest_of([{"uri": f"/v/{n:02d}.mp4", "frames": 5 * n} for n in range(20)])
    about = about_of(plan_of(tmp_path, manifest, "/v", ClipConfig(frames=4), 6, part_videos=8))
    plain = make_plan(manifest, "/v", ClipConfig(frames=4), 6, 8)
    plan = pickle.loads(pickle.dumps(open_plan(str(tmp_path), about)))
    assert (plan.shards, plan.clips, plan.videos, plan.frames) == (plain["shard"].max() + 1, len(plain), 20, 4)
    for shard in [*range(plan.shards), 3, plan.shards - 1]:
        expected = plain[plain["shard"] == shard].reset_index(drop=True)
        pd.testing.assert_frame_equal(plan.clips_of(shard), expected)
    assert list(plan.uris()) == plain["video"].drop_duplicates().tolist() and plan.damage() == []
    pd.testing.assert_frame_equal(plan.rows(), plain)
    assert pd.read_parquet(tmp_path / "plan.parquet")["video"].tolist() == manifest["uri"].tolist()
    # A part that was written again since.
    place = tmp_path / "plan.parquet" / "000001.parquet"
    pd.read_parquet(place).to_parquet(place)
    assert len(plan.damage()) == 1
    with pytest.raises(PipelineError, match=r"000001.parquet: its hash is not the one in dataset\.json"):
        _ = open_plan(str(tmp_path), about).outline


def test_a_plan_of_format_2_answers_alike(tmp_path: Path) -> None:
    videos = [(n * 13 % 60, 24.0, (64, 48), 0, n % 5 == 0, n % 2 == 0) for n in range(20)]
    manifest = manifest_with(videos)
    plain = make_plan(manifest, "/v", ClipConfig(frames=4), 6)
    [part] = parts_of(manifest, ClipConfig(frames=4), 6, 1000)
    data = plan_bytes(plain)
    (tmp_path / "plan.parquet").write_bytes(data)
    old = open_plan(str(tmp_path), {"plan": "another"})
    assert isinstance(old, RowPlan) and old.damage() == ["plan.parquet: its hash is not the one in dataset.json"]
    outline = part.outline()
    for name in ("clips", "refused", "begins", "continued"):
        assert getattr(old.outline, name).tolist() == getattr(outline, name).tolist(), name
    assert old.outline.remote == outline.remote and old.shards == len(outline.clips)
    for shard in range(old.shards):
        pd.testing.assert_frame_equal(old.clips_of(shard), part.clips_of(shard))
        assert old.straddling(shard) == part.straddling(shard)
    assert old.refused(range(2, old.shards)) == part.refused(range(2, old.shards))


def test_parts_hold_as_many_rows_as_they_are_told_to() -> None:
    table = pa.table({"n": np.arange(50)})
    cuts = [table.slice(begin, size) for begin, size in ((0, 3), (3, 0), (3, 40), (43, 7))]
    expected = [list(range(begin, min(begin + 8, 50))) for begin in range(0, 50, 8)]
    assert [part["n"].to_pylist() for part in in_parts(cuts, 8)] == expected
