"""Decoders that are not there: one line, which names the decoder once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import runs
from tests.support.videos import write_video


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here it decodes")
def test_gaze_names_a_decoder_that_cannot_work_once(tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", frames=4, size=(64, 48))
    done = runs.plainly("gaze", video, f"output={tmp_path / 'out'}", "decoder=torchcodec-cuda")
    assert done.returncode == 2 and done.stderr.startswith("autogaze: decoder=torchcodec-cuda")
    assert done.stderr.count("decoder=torchcodec-cuda") == 1 and done.stderr.count("\n") == 1
