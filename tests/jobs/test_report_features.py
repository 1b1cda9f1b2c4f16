"""The report with encoder.checkpoint=: feature maps of full frames and of gazed patches, in the same colours."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from autogaze.gaze import Gaze
from autogaze.vision import load
from autogaze.vision.agreement import agreement
from jobs import cli, report
from jobs.feature_maps import NOT_SHOWN, feature_maps
from jobs.report import ReportConfig
from pipelines.networks.encoders import EncoderConfig
from tests.jobs.test_report import Page
from tests.support.encoders import write_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoders") / "siglip")


@pytest.fixture(scope="module")
def dataset(gazed_dataset: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three clips of three frames."""
    return gazed_dataset(tmp_path_factory.mktemp("seen") / "gaze", videos=2)


def test_some_clips_show_what_the_encoder_sees_of_both(dataset: str, siglip: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    config = ReportConfig(dataset, str(file), encoder=EncoderConfig(str(siglip), attention="newest"), seen=2)
    report.run(config, Console(file=io.StringIO()))
    html = file.read_text()
    page, text = Page(html), " ".join(Page(html).text.split())
    maps = [a for tag, a in page.tags if tag == "img" and a.get("class") == "map"]
    assert len(maps) == 2 * 2 * 3, "of two clips, both rows, three frames each"
    assert sum(image.shape == (14, 14, 3) for image in page.images()) == len(maps)
    assert "2 of these clips also show features of SigLIP" in text and "attention newest" in text
    assert text.count("features of full frames") == 2 and text.count("from") >= 2 and "of 588 tokens" in text
    assert html.replace("data:image/webp", "").count("http") == 0, "nothing is fetched"


def test_maps_have_the_colours_of_the_full_frames_and_the_cosine_of_both(siglip: Path) -> None:
    encoder = load(siglip)
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    everything = list(range(encoder.vocabulary.offsets[-1], encoder.vocabulary.size))
    gaze = Gaze.from_lists([[[], everything[:20], everything[:1]]], vocabulary=encoder.vocabulary)
    maps = feature_maps(encoder, frames, gaze)
    assert maps.full.shape == maps.gazed.shape == (3, 14, 14, 3) and maps.tokens == 21
    assert (maps.gazed[0] == NOT_SHOWN).all() and maps.cosine[0] == 0, "nothing is shown yet"
    assert (maps.gazed[1].reshape(-1, 3)[20:] == NOT_SHOWN).all() and (maps.gazed[1] != NOT_SHOWN).any()
    full = encoder.sharing(attention="frame").encode(frames[None])
    assert maps.mean == pytest.approx(float(agreement(full, encoder.encode(frames[None], gaze)).dense), abs=1e-5)
    same = feature_maps(
        encoder.sharing(attention="frame"), frames, encoder.own_gaze(None, encoder.as_clips(frames[None]), None)
    )
    assert (same.full == same.gazed).all() and same.mean == pytest.approx(1)


@pytest.mark.parametrize(
    "settings, told",
    [
        (["encoder.checkpoint={nothing}"], "nothing: is not there; give a vision transformer"),
        (["encoder.checkpoint={siglip}", "encoder.scales=112+224"], "or convert=coverage takes its gaze"),
        (["encoder.checkpoint={siglip}", "seen=0"], "seen=0: must be at least 1"),
        (["encoder.dtype=float16"], "encoder.checkpoint= is missing"),
        (["{frameless}", "encoder.checkpoint={siglip}"], "stores no frames that encoder.checkpoint= could see"),
    ],
)
def test_what_cannot_be_seen_is_told_in_one_line(
    settings: list[str],
    told: str,
    dataset: str,
    siglip: Path,
    gazed_dataset: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"nothing": str(tmp_path / "nothing"), "siglip": str(siglip)}
    if settings[0] == "{frameless}":
        places["frameless"] = gazed_dataset(tmp_path / "frameless", videos=1, storage="none")
    words = [word.format(**places) for word in settings]
    if "frameless" not in places:
        words.insert(0, dataset)
    assert cli.main(["report", *words, f"output={tmp_path / 'report.html'}"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()
