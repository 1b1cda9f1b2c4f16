"""What a real Ray's agent exports of a preprocess job and of training; and the dashboard that shows it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import prometheus
from pipelines.preprocess.series import PREPROCESS_SERIES
from pipelines.runs.events import Events
from pipelines.runs.series import TRAIN_SERIES
from tests.support import runs, training

DASHBOARD = json.loads((runs.ROOT / "docs" / "grafana-dashboard.json").read_text())
EXPORTED = {series.exported: series for series in (*PREPROCESS_SERIES, *TRAIN_SERIES)}
AGENT = ("opencensus", "opentelemetry.exporter.prometheus", "aiohttp_cors", "grpc")  # of ray[default]

# A job in a Ray of its own, whose agent is asked what it exports until all of it is there.
SCRIPT = """
import json, socket, sys, time, urllib.request
import ray
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(
    address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, logging_level="ERROR",
    log_to_driver=False, _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 500},
)
from jobs.config import load
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.graph import execute
from pipelines.preprocess.job import plan_job
from pipelines.preprocess.series import ShardSeries
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import Workers

videos, output, data, run, words = json.loads(sys.argv[1])
config = load(PreprocessConfig, [f"input={videos}", f"output={output}", "shard.clips=2"])
job = plan_job(config)
series = ShardSeries("preprocess", job.output, job.clips)
totals = Totals()
execute(job, Workers(1, 1, "cpu"), totals, lambda: series.update(totals))

@ray.remote
class Worker:  # as Ray Train's are: an actor. It stays in its last step until it is told to end.
    def train(self):
        from pipelines.runs.events import Events
        from pipelines.train.config import PolicyTrainConfig
        from pipelines.train.loop import train
        from pipelines.train.policy import PolicyTask
        Events.close = lambda events: None
        return train(load(PolicyTrainConfig, words), PolicyTask)

worker = Worker.remote()
assert ray.get(worker.train.remote()) == "done"
text, wanted = "", {"ray_autogaze_train_step", "ray_autogaze_train_clips_total", "ray_autogaze_preprocess_clips_left"}
for _ in range(60):
    time.sleep(0.5)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except OSError:
        continue
    mine = ("ray_autogaze_train_step{", "ray_autogaze_train_steps{")
    at = [line.rsplit(" ", 1)[-1] for line in text.splitlines() if line.startswith(mine)]
    if all(name in text for name in wanted) and len(at) == 2 and at[0] == at[1]:  # the agent is a report behind
        break
print(json.dumps({"text": text, "ok": totals.ok, "failed": totals.failed, "frames": totals.frames,
                  "tokens": totals.tokens, "seconds": totals.seconds, "shards": job.shards}))
"""


def series_of(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Our lines of Prometheus' text format, by name: labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in re.findall(r"^(ray_autogaze_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)))
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name.split(".")[0]) is None for name in AGENT),
    reason="Ray's metrics agent needs the packages of ray[default]",
)
def test_an_agent_of_a_real_ray_exports_what_the_jobs_did(store_of_videos: Path, gazes: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "1"
    words = training.settings(gazes, run, "epochs=1")
    told = json.dumps([str(store_of_videos), str(tmp_path / "gaze"), gazes, str(run), words])
    environment = runs.environment(joins=True)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(runs.ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, told], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    job = json.loads(done.stdout.splitlines()[-1])
    found = series_of(job["text"])
    assert set(found) <= set(EXPORTED)

    def value(name: str, **labels: str) -> float:
        values = [number for tags, number in found[f"ray_autogaze_{name}"] if labels.items() <= tags.items()]
        assert len(values) == 1, (name, labels, found[f"ray_autogaze_{name}"])
        return values[0]

    dataset = f"{tmp_path.name}/gaze"
    assert value("preprocess_clips_total", dataset=dataset, outcome="ok") == job["ok"] > 0
    assert value("preprocess_clips_total", dataset=dataset, outcome="failed") == sum(job["failed"].values()) == 1
    for reason, count in job["failed"].items():
        assert value("preprocess_failures_total", dataset=dataset, reason=reason) == count
    assert value("preprocess_shards_total", dataset=dataset) == job["shards"]
    assert value("preprocess_frames_total", dataset=dataset) == job["frames"]
    assert value("preprocess_tokens_total", dataset=dataset) == job["tokens"]
    written = [path for name in ("shards", "index") for path in (tmp_path / "gaze" / name).iterdir()]
    assert value("preprocess_bytes_total", dataset=dataset) == sum(path.stat().st_size for path in written)
    assert value("preprocess_clips_left", dataset=dataset) == 0
    for stage in ("decode", "gaze"):
        exported = value("preprocess_stage_seconds_total", dataset=dataset, stage=stage)
        assert exported == pytest.approx(job["seconds"][stage]) and exported > 0

    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert value("train_step", run="runs/1") == value("train_steps", run="runs/1") == len(steps)
    assert value("train_loss", run="runs/1") == pytest.approx(steps[-1]["loss"])
    assert value("train_clips_total", run="runs/1") == sum(line["samples"] for line in steps)
    assert value("train_wait_share", run="runs/1") == pytest.approx(steps[-1]["wait"])


@pytest.mark.slow
def test_without_a_ray_nothing_is_exported_and_nothing_fails(tmp_path: Path) -> None:
    script = (
        "import sys; from pipelines.runs.events import Events; events = Events(sys.argv[1]);"
        "events.step(1, 0, 4, {'loss': 1.0}, seconds=0.1); events.close();"
        "assert 'ray' not in sys.modules and not events._exported._export._metrics"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(words, env=runs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"loss": 1.0' in (tmp_path / "events.jsonl").read_text()


def test_a_number_that_is_none_stops_no_step(ray_session: str, tmp_path: Path) -> None:
    events = Events(str(tmp_path / "läufe 视频"))  # nor does a name that Ray's tags do not take
    assert events._exported._export._metrics, "a Ray runs in this process"
    events.step(1, 0, 0, {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 0.0}, seconds=0.1, steps=7)
    events.close()


def test_a_tag_tells_jobs_apart_and_shows_no_credentials() -> None:
    for url, name in (
        ("/data/runs/1", "runs/1"),
        ("s3://bucket/gaze/", "bucket/gaze"),
        ("s3://bucket", "bucket"),
        ("https://user:secret@host", "host"),
        ("/data/läufe/1", "l\\xe4ufe/1"),
        ("/data/\udc80/1", "\\udc80/1"),
    ):
        assert prometheus.series_name(url) == name


def test_the_dashboard_shows_every_series_and_no_other() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    used = {name for panel in panels for t in panel["targets"] for name in re.findall(r"\bray_\w+", t["expr"])}
    assert used == set(EXPORTED)
    for panel in panels:
        for target in panel["targets"]:
            for name, selector in re.findall(r"\b(ray_\w+)\{([^}]*)\}", target["expr"]):
                tag = "run" if "_train_" in name else "dataset"
                assert f'{tag}=~"${tag}"' in selector
            labels = set(re.findall(r"\bby \((\w+)\)", target["expr"]))
            series = [EXPORTED[name] for name in re.findall(r"\bray_\w+", target["expr"])]
            assert labels <= {"dataset", "run"}.union(*(one.tags for one in series))
            assert target["expr"].count("(") == target["expr"].count(")")


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana asks of a dashboard: a title, a schema version, a source, panels with places of their own."""
    assert DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"]
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "dataset", "run"}
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"] and panel["datasource"]["uid"] == "${datasource}" and panel["targets"]
