"""pipelines.preprocess.decoding: what is wrong with one video fails its clips, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipelines.corpus.plan import ClipConfig
from pipelines.corpus.scan import probe_object
from pipelines.storage import store
from pipelines.video.base import DecodeConfig
from pipelines.video.isolated import IsolatedDecoder
from tests.support.decoding import decode
from tests.support.plans import plan_of


def test_what_cannot_be_opened_since_it_was_planned_fails_its_clips_only(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    for name in ("a/gone.mp4", "b/folder.mp4", "c/through.mp4", "good.mp4"):
        make_video(videos / name, frames=4)
    with IsolatedDecoder(DecodeConfig()) as decoder:
        rows = [row for entry in store.list_objects(str(videos)) for row in probe_object(entry, decoder)]
    plan = plan_of(tmp_path, pd.DataFrame(rows), str(videos), ClipConfig(frames=4), 10)
    for path in videos.rglob("?/*.mp4"):
        path.unlink()
    (videos / "b" / "folder.mp4").mkdir()
    (videos / "c").rmdir()
    (videos / "c").write_bytes(b"")

    decoded = decode(plan, 0)
    assert decoded.ok == [False, False, False, True]
    assert decoded.reasons == ["missing", "unreadable", "missing"]
