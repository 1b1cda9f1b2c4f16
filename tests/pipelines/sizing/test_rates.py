"""Rates survive their file, are refused for other work, and are found again from times."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus.plan import ClipConfig
from pipelines.errors import PipelineError
from pipelines.sizing.rates import DecodeRates, Rates, read_rates, require_rates, write_rates
from pipelines.sizing.trials import TimedTrial, Trial, fitted_rates
from pipelines.sizing.workload import of_manifest
from pipelines.video.base import Source
from tests.pipelines.sizing.test_workload import manifest

DECODE = DecodeRates(0.02, 0.002, 0.001, {"vp9": 1.5}, (0.9, 1.1))
RATES = Rates(
    machine="here",
    at_once=2,
    decoder="pyav",
    gaze="canvas threshold=null max_ratio=null",
    device="cpu",
    frames=16,
    batch=16,
    decode=DECODE,
    jpeg=0.005,
    write=0.001,
    search=0.02,
    shard=0.01,
    stored={"jpeg": 3e5, "raw": 2.4e6, "none": 7e3},
)


def test_a_file_gives_back_the_rates_that_were_written(tmp_path: Path) -> None:
    assert read_rates(str(tmp_path / "none.json")) is None
    write_rates(RATES, str(tmp_path / "rates.json"))
    assert read_rates(str(tmp_path / "rates.json")) == RATES


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda text: text[:-30], "rates.json: is no file of autogaze size"),
        (lambda text: "[]", "no rates of format 1"),
        (lambda text: text.replace('"search": 0.02', '"search": "fast"'), "search is 'fast'"),
        (lambda text: text.replace('"jpeg": 0.005', '"jpeg": -1'), "jpeg is -1"),
        (lambda text: text.replace('"frame": 0.001,', ""), "frame"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, change, what: str) -> None:
    file = tmp_path / "rates.json"
    file.write_text(change(RATES.to_json().decode()))
    with pytest.raises(PipelineError, match=what) as error:
        read_rates(str(file))
    assert "\n" not in str(error.value)


def test_rates_of_other_work_are_refused() -> None:
    require_rates(RATES, "r", "pyav", RATES.gaze, "cpu", 16)
    with pytest.raises(PipelineError, match="rates=r: measured with device=cpu, and the job has device=cuda"):
        require_rates(RATES, "r", "pyav", RATES.gaze, "cuda", 16)
    with pytest.raises(PipelineError, match=r"measured with clip\.frames=16, and the job has clip\.frames=8"):
        require_rates(RATES, "r", "pyav", RATES.gaze, "cpu", 8)


def test_times_that_follow_rates_give_the_rates_back() -> None:
    jobs = [
        of_manifest([manifest([400, 900, 60, 3000])], "s3://b", ClipConfig(stride=stride), 10**6) for stride in (1, 3)
    ]
    pieces = [piece for job in jobs for piece in job.sample[0][0].pieces] * 2
    done = [
        TimedTrial(Trial(piece, piece.clips / DECODE.of(piece), lambda: nullcontext(Source(""))), DECODE.of(piece), ())
        for piece in pieces
    ]
    found = fitted_rates(done)
    assert [found.of(piece) for piece in pieces] == pytest.approx([DECODE.of(piece) for piece in pieces], rel=0.15)
    assert sum(map(found.of, pieces)) == pytest.approx(sum(map(DECODE.of, pieces)), rel=0.03)
    assert found.codecs["vp9"] / found.codecs["h264"] == pytest.approx(1.5, rel=0.15)


def test_the_sum_is_right_even_where_no_rates_fit() -> None:
    job = of_manifest([manifest([400] * 64)], "s3://b", ClipConfig(), 10**6)
    pieces = job.sample[0][0].pieces
    seconds = np.random.default_rng(0).lognormal(0, 0.7, len(pieces)).tolist()
    done = [
        TimedTrial(Trial(piece, 1.0, lambda: nullcontext(Source(""))), spent, ())
        for piece, spent in zip(pieces, seconds, strict=True)
    ]
    found = fitted_rates(done)
    assert sum(map(found.of, pieces)) == pytest.approx(sum(seconds), rel=1e-6)
    assert np.mean(found.spread) == pytest.approx(1, rel=0.01)
