"""The report: its numbers are the index's, it holds all it shows, and no dataset breaks it."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from autogaze import greedy, reconstruction
from autogaze.patches import VOCABULARY
from jobs import report
from jobs.pictures import charts
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset import shards
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.indexes import Indexes
from pipelines.dataset.shards import Outcome
from pipelines.errors import PipelineError
from pipelines.inspection import survey
from tests.support.plain_plan import make_plan, plan_bytes
from tests.support.records import run_record

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, FRAMES, THRESHOLD = VOCABULARY.frame_size, 3, 0.05
HOSTILE = "/videos/<script>alert('x')</script> \"&amp; 视频.mp4"


def footage(number: int) -> np.ndarray:
    """A clip that takes more patches the higher its number: blocks of noise over a flat ground; uint8 [T, S, S, 3]."""
    random = np.random.default_rng(number)
    frames = np.full((FRAMES, SIDE, SIDE, 3), 90 + number, np.uint8)
    for t in range(FRAMES):
        for _ in range(number):
            y, x = random.integers(0, 14, 2) * 16
            frames[t, y : y + 16, x : x + 16] = random.integers(0, 256, 3)
    return frames


def make_dataset(
    folder: Path, clips: int = 10, failing: Sequence[str] = (), storage: str = "jpeg", commit: int | None = None
) -> str:
    """A dataset of one-clip videos, four to a shard, and some videos that failed in the scan."""
    folder.mkdir(parents=True)
    uris = [f"/videos/v{number:02d}.mp4" for number in range(clips)]
    manifest = pd.DataFrame(
        {
            "uri": [*uris, *failing],
            "object": [*uris, *failing],
            "offset": 0,
            "bytes": 1,
            "fingerprint": "0",
            "width": 64,
            "height": 48,
            "rotation": 0,
            "fps": 25.0,
            "frames": [FRAMES] * clips + [0] * len(failing),
            "status": ["ok"] * clips + ["failed"] * len(failing),
            "reason": [None] * clips + ["no_video_stream"] * len(failing),
            "detail": [None] * clips + ["audio only"] * len(failing),
        }
    )
    plan = make_plan(manifest, "/videos", ClipConfig(frames=FRAMES), 4)
    config = {
        "input": "s3://user:hunter2@bucket/videos?X-Amz-Signature=abc",
        "gaze": "canvas",
        "threshold": THRESHOLD,
        "clip": {"frames": FRAMES, "stride": 1},
        "frames": storage,
    }
    (folder / "dataset.json").write_text(json.dumps({"format": 2, "config": config}))
    (folder / "plan.parquet").write_bytes(plan_bytes(plan))
    reconstructor = reconstruction.load("canvas")
    for shard, rows in plan.groupby("shard"):
        if commit is not None and shard >= commit:
            continue
        outcomes = []
        for row in rows.to_dict("records"):
            if isinstance(row["reason"], str):
                outcomes.append(Outcome(reason=row["reason"], detail="<b>audio</b> only"))
                continue
            frames = footage(int(row["video"][-6:-4]) * 6)
            gaze = greedy.label(frames[None], reconstructor, threshold=THRESHOLD, max_ratio=0.5)
            outcomes.append(Outcome(gaze=gaze, members=encode_frames(frames, storage, 90)))
        shards.commit_shard(str(folder), int(shard), *shards.build_shard(rows, outcomes, THRESHOLD))
    return str(folder)


class Page(HTMLParser):
    """What the tests look at: tags, attributes, text, and the numbers marked data-stat."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.stats = {a["data-stat"]: float(a["data-value"] or "nan") for _, a in self.tags if "data-stat" in a}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[np.ndarray]:
        found = [a["src"] or "" for tag, a in self.tags if tag == "img"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in found]


def page(dataset: str, clips: int = 12) -> Page:
    return Page(report.build(shards.open_dataset(dataset), clips))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("data") / "demo", clips=10, failing=[HOSTILE, "/videos/z.mp4"])


@pytest.fixture(scope="module")
def html(dataset: str) -> str:
    return report.build(shards.open_dataset(dataset))


def test_the_numbers_are_those_of_the_index(dataset: str, html: str) -> None:
    index = pd.concat([pd.read_parquet(path) for path in sorted(Path(dataset, "index").glob("*.parquet"))])
    ok = index[index["outcome"] == "ok"]
    weights = ok["frames"] / ok["frames"].sum()
    stats = Page(html).stats
    assert stats["ok"] == len(ok) == 10
    assert stats["failed"] == (index["outcome"] == "failed").sum() == 2
    assert stats["tokens"] == ok["tokens"].sum() > 0
    assert stats["frames"] == ok["frames"].sum()
    assert stats["committed"] == index["shard"].nunique() == 3
    for name, column in (("ratio", "ratio"), ("error", "loss"), ("met", "met")):
        assert stats[name] == pytest.approx((ok[column].astype(float) * weights).sum(), rel=1e-9)
    assert stats["ratio"] == pytest.approx(ok["tokens"].sum() / (ok["frames"].sum() * VOCABULARY.size), rel=1e-6)
    assert stats["reduction"] == pytest.approx(1 / stats["ratio"], rel=1e-9)


def test_the_token_counts_are_those_of_the_gazes(dataset: str) -> None:
    opened = shards.open_dataset(dataset)
    sample = survey.sample_gazes(opened, survey.take_survey(opened))
    counts = np.zeros((FRAMES, 4))
    index = opened.index()
    for _, row in index[index["outcome"] == "ok"].iterrows():
        with np.load(io.BytesIO(opened.read_clip(row)["gaze.npz"])) as gaze:
            ends = np.cumsum(gaze["lengths"])
            for t in range(FRAMES):
                for token in gaze["tokens"][ends[t] - gaze["lengths"][t] : ends[t]]:
                    counts[t, VOCABULARY.locate(int(token))[0]] += 1
    assert (sample.clips, sample.of) == (10, 10)
    np.testing.assert_allclose(sample.counts, counts / 10)
    assert sample.first == pytest.approx(counts[0].sum() / 10)
    assert sample.later == pytest.approx(counts[1:].sum() / 10 / (FRAMES - 1))


def test_a_large_dataset_is_sampled_and_the_page_says_so(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLED_CLIPS", 4)
    assert "fixed sample of 4 of 10 clips" in " ".join(page(dataset).text.split())


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    shown = Page(html)
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in shown.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                assert value and value.startswith("data:image/"), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    assert "@import" not in html and "url(" not in html


def test_names_and_secrets_do_no_harm(html: str) -> None:
    assert "<script" not in html and "<b>audio</b>" not in html
    assert HOSTILE in Page(html).text, "shown as it is, escaped"
    assert "hunter2" not in html and "Signature" not in html
    assert "s3://bucket/videos" in html


def test_gallery_pictures_are_real_and_the_pick_is_spread_and_fixed(dataset: str) -> None:
    shown = page(dataset, clips=3)
    images = shown.images()
    assert len(images) == 3 * 3 * FRAMES and all(image.shape == (SIDE, SIDE, 3) for image in images)
    original, gazed, rebuilt = (images[kind * FRAMES : (kind + 1) * FRAMES] for kind in range(3))
    assert np.abs(original[0].astype(int) - rebuilt[0]).mean() / 255 < THRESHOLD + 0.02
    assert gazed[0].std() > 0
    assert "cheapest" in shown.text and "percentile 44" in shown.text and "dearest" in shown.text
    ratio = np.array([0.3, 0.1, 0.2, 0.1, 0.5], np.float32)
    assert survey.representative(ratio, 3) == [(1, 0.0), (2, 0.5), (4, 1.0)]
    assert survey.representative(ratio, 1) == [(2, 0.5)]
    assert [place for place, _ in survey.representative(ratio, 99)] == [1, 3, 2, 0, 4]
    assert survey.representative(ratio[:0], 3) == survey.representative(ratio, 0) == []


def test_failures_come_with_their_meaning(html: str) -> None:
    text = Page(html).text
    assert "no_video_stream" in text and "audio only, or only a cover picture" in text
    assert "/videos/z.mp4" in text


def test_many_failures_are_counted_but_not_all_listed(tmp_path: Path) -> None:
    text = page(make_dataset(tmp_path / "d", 1, [f"/videos/bad{n:03d}.mp4" for n in range(40)])).text
    assert text.count("/videos/bad") == survey.LISTED_VIDEOS
    assert f"and {40 - survey.LISTED_VIDEOS} more" in text


@pytest.mark.parametrize(
    ("clips", "failing", "commit"), [(1, [], None), (0, ["/videos/x.mp4"], None), (9, [], 1), (9, ["/videos/x.mp4"], 0)]
)
def test_small_and_unfinished_datasets(tmp_path: Path, clips: int, failing: list[str], commit: int | None) -> None:
    shown = page(make_dataset(tmp_path / "d", clips, failing, commit=commit))
    committed = -(-(clips + len(failing)) // 4) if commit is None else commit
    assert shown.stats["committed"] == committed
    assert shown.stats["ok"] == (clips if commit is None else min(clips, 4 * commit))
    assert ("Not complete" in shown.text) == (commit is not None)
    assert ("No clip was gazed" in shown.text) == (shown.stats["ok"] == 0)
    assert "nan" not in shown.text.lower()


def test_frames_that_were_not_stored_are_not_made_up(tmp_path: Path) -> None:
    shown = page(make_dataset(tmp_path / "d", 3, storage="none"))
    assert "Frames were not stored" in " ".join(shown.text.split())
    assert len(shown.images()) == 3 * FRAMES  # the places of the patches only
    assert not re.search(r"\breconstruction\b of frame", str(shown.tags))


def test_raw_frames_are_shown_too(tmp_path: Path) -> None:
    assert len(page(make_dataset(tmp_path / "d", 2, storage="raw")).images()) == 2 * 3 * FRAMES


def test_runs_are_shown_and_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", 1)
    assert "No run records" in page(dataset).text
    runs = Path(f"{dataset}.runs")
    runs.mkdir()
    (runs / "one.json").write_bytes(run_record().to_json())
    for name, text in (("bad.json", "{"), ("list.json", "[]"), ("other.json", '{"started": 1}'), ("notes.txt", "x")):
        (runs / name).write_text(text)
    shown = page(dataset).text
    assert "1,234 ok" in shown and "5 failed" in shown and "197" in shown and "3 nodes, 24 CPUs, 1 GPU" in shown
    assert "2026-11-22 10:00:00 UTC" in shown and "1 min 40 s" in shown
    stages = re.findall(r"(gaze|decode|encode)\s*(\d+)%", shown[shown.index("stage of the last run") :])
    assert stages == [("gaze", "90"), ("decode", "75"), ("encode", "15")]


@pytest.mark.slow
def test_a_hundred_thousand_clips_take_one_pass_and_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shards.open_dataset(make_dataset(tmp_path / "d", 4))
    one = shards.read_index(small.url, 0)
    monkeypatch.setattr(survey, "SAMPLED_CLIPS", 8)
    monkeypatch.setattr(shards.Dataset, "committed", lambda self: list(range(25_000)))
    monkeypatch.setattr(Indexes, "tables", lambda self, numbers: (one for _ in numbers))
    monkeypatch.setattr(Indexes, "table", lambda self, shard, columns=None: one)
    opened = []
    read = shards.Dataset.read_clip
    monkeypatch.setattr(shards.Dataset, "read_clip", lambda self, row: opened.append(row) or read(self, row))
    shown = Page(report.build(small, 3))
    assert shown.stats["ok"] == 100_000
    assert len(opened) <= 8 + 3


def test_where_the_file_goes(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(quiet=True)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in Path(dataset).rglob("*")}
    assert report.run(report.ReportConfig(dataset + "/"), console) == str(tmp_path / "demo-report.html")
    assert report.run(report.ReportConfig(dataset, str(tmp_path)), console) == str(tmp_path / "demo-report.html")
    assert report.run(report.ReportConfig(dataset, "a/b.html"), console) == str(tmp_path / "a" / "b.html")
    assert {path: path.stat().st_mtime_ns for path in Path(dataset).rglob("*")} == before, "the dataset is only read"


def test_mistakes_are_one_line(dataset: str, tmp_path: Path) -> None:
    for config in (
        report.ReportConfig(""),
        report.ReportConfig(str(tmp_path)),
        report.ReportConfig(dataset, clips=-1),
        report.ReportConfig(dataset, output=f"{dataset}/dataset.json/x.html"),
    ):
        with pytest.raises(PipelineError) as caught:
            report.run(config, Console(quiet=True))
        assert "\n" not in str(caught.value)


def test_damaged_bytes_are_named_and_verify_is_proposed(dataset: str, tmp_path: Path) -> None:
    damaged = tmp_path / "d"
    shutil.copytree(dataset, damaged)
    tar = damaged / "shards" / "000000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(PipelineError, match="autogaze verify"):
        page(str(damaged))
    tar.unlink()
    with pytest.raises(PipelineError, match="autogaze verify"):
        page(str(damaged))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [0.3] * 5,
        [1e-6, 2e-6],
        [0.0, 1.0],
        list(np.linspace(0, 0.1, 1000)),
        [-0.3],
        [-2.0, -1e-9, 0.0, 0.04],
        list(np.linspace(-0.7, 0.1, 1000)),
    ],
)
def test_histograms_count_every_value_once(values: list[float]) -> None:
    svg = str(charts.histogram(np.array(values), "ratio (%)", "clips", 100, mark=(0.05, "threshold")))
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) clips</title>", svg)) == len(values)
    assert "threshold" in svg and "ratio (%)" in svg and "nan" not in svg


def test_values_below_0_have_a_place_on_the_axis() -> None:
    svg = str(charts.histogram(np.array([-2.0, -1.0, 1.0]), "predicted loss", "clips", mark=(0.5, "threshold 0.5")))
    bars = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.-]+)" y="[\d.]+" width="([\d.]+)"', svg)]
    assert len(bars) == 3 and bars[0][0] >= charts._LEFT and bars[-1][0] + bars[-1][1] <= charts._WIDTH
    assert bars[1][0] - bars[0][0] == pytest.approx((bars[2][0] - bars[1][0]) / 2, abs=0.2), "equal scale throughout"
    (mark,) = re.findall(r'class="mark" x1="([\d.]+)"', svg)
    assert bars[1][0] < float(mark) < bars[2][0]
    assert {"-2", "0", "1"} <= set(re.findall(r'text-anchor="middle">([^<]+)</text>', svg))


@pytest.mark.parametrize("width", [1400, pytest.param(500, marks=pytest.mark.slow)])
def test_a_browser_shows_no_blank_page(dataset: str, tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on PATH")
    file, shot = tmp_path / "report.html", tmp_path / "shot.png"
    report.run(report.ReportConfig(dataset, str(file), clips=2), Console(quiet=True))
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={shot}"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},2000",
        file.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True)
    seen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert seen.shape[1] == width
    bands = np.array_split(seen[:1800], 6)
    assert all(band.std() > 3 for band in bands), "something is drawn in every part of the page"
    colours = [np.array([int(report.hex_colour(level)[i : i + 2], 16) for i in (1, 3, 5)]) for level in range(2)]
    for colour in colours:  # the charts and the legend, in the scales' colours
        assert (np.abs(seen - colour).max(axis=2) < 12).sum() > 20


def test_what_a_policy_predicts_is_not_called_a_reconstruction_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "demo", clips=3)
    about = json.loads(Path(dataset, "dataset.json").read_text())
    about["config"] |= {"gaze": "policy", "threshold": 0.7}
    about |= {"units": "as predicted", "models": {"policy": {"fingerprint": "f00d", "dtype": "float32"}}}
    Path(dataset, "dataset.json").write_text(json.dumps(about))
    text = " ".join(page(dataset).text.split())
    assert "gazed by policy until a frame's predicted loss is at or under 0.7" in text
    assert "mean predicted loss" in text and "predicted loss of a clip" in text and "canvas reconstruction" in text
    assert "predicted to meet the threshold" in text and "met the threshold" not in text
    assert "reconstruction error" not in text and "f00d" in text and "as predicted" in text


def test_without_a_threshold_none_is_said_to_be_met(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "demo", clips=3)
    about = json.loads(Path(dataset, "dataset.json").read_text())
    about["config"] |= {"gaze": "videomae", "threshold": None, "max_ratio": None, "labels": {"lengths": "paper"}}
    about |= {"units": "training loss of the reconstructor (l1, weights 1)"}
    Path(dataset, "dataset.json").write_text(json.dumps(about))
    seen = page(dataset)
    text = " ".join(seen.text.split())
    assert "gazed by videomae. " in text and "no threshold" in text and "until a frame" not in text
    assert "threshold None" not in text and "is at or under" not in text
    assert "training loss of the reconstructor" in text and "canvas reconstruction" in text
