"""Predictions of whole jobs: of both kinds of simulation, and on more and more nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.corpus.plan import ClipConfig
from pipelines.preprocess.config import PreprocessConfig
from pipelines.sizing import predict
from pipelines.sizing.amounts import amounts
from pipelines.sizing.predict import Predictor
from pipelines.sizing.rules import RAY_CORES, Cluster, shard_cost
from pipelines.sizing.workload import Workload, of_alike, of_manifest
from tests.pipelines.sizing.test_rates import RATES
from tests.pipelines.sizing.test_workload import manifest

CONFIG = PreprocessConfig(input="corpus", output="dataset")
CLUSTER = Cluster(nodes=1, cores=8, gpus=0, bytes_per_s=1.25e9, store_bytes_per_s=1e18)
HOURS = (0.64, (1280, 720), "h264", 25.0, 4.0, ClipConfig())  # videos of 60 clips


@pytest.fixture(scope="module")
def few() -> Workload:
    """80 shards of two videos each."""
    return of_alike(160 * 0.64 / 60, *HOURS, 120)


@pytest.fixture(scope="module")
def many() -> Workload:
    return of_alike(400, *HOURS, 120)


def test_a_node_that_is_watched_predicts_what_all_of_it_does(few: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    job = few
    whole = Predictor(job, RATES, CONFIG).predict(CLUSTER)
    assert whole.simulated == f"all {job.clips:,} clips, one by one"
    monkeypatch.setattr(predict, "_WHOLE_CLIPS", 0)
    for nodes in (1, 3):
        cluster = replace(CLUSTER, nodes=nodes)
        in_parts = Predictor(job, RATES, CONFIG).predict(cluster)
        monkeypatch.setattr(predict, "_WHOLE_CLIPS", 10**9)
        assert in_parts.seconds == pytest.approx(Predictor(job, RATES, CONFIG).predict(cluster).seconds, rel=0.1)
        monkeypatch.setattr(predict, "_WHOLE_CLIPS", 0)


def test_cores_that_are_all_busy_take_what_the_work_takes(few: Workload) -> None:
    job = few
    rates = replace(RATES, search=0.01)
    found = Predictor(job, rates, replace(CONFIG, frames="none")).predict(CLUSTER)
    decode = sum(piece.decode for shard in job.sample[0] for piece in shard_cost(shard, rates))
    work = decode + job.clips * (rates.search + rates.write)
    assert found.slowest == "cores, mostly decode"
    spent = found.seconds * 8 * (found.busy["cores"] - found.inside["Ray"])
    assert spent == pytest.approx(work, rel=0.03)
    assert found.inside["Ray"] * 8 == pytest.approx(RAY_CORES, rel=0.1)
    assert work / 8 <= found.seconds <= 1.3 * work / 8


def test_a_gpu_that_is_slower_than_its_cores_is_the_slowest(few: Workload) -> None:
    job, rates = few, replace(RATES, search=0.05, device="cuda")
    found = Predictor(job, rates, CONFIG).predict(replace(CLUSTER, cores=64, gpus=1))
    assert (found.slowest, found.actors, found.gazers) == ("GPUs", 1, 1)
    assert found.seconds == pytest.approx(job.clips * 0.05, rel=0.05)


def test_a_store_that_gives_little_is_the_slowest(few: Workload) -> None:
    job = few
    found = Predictor(job, RATES, CONFIG).predict(replace(CLUSTER, nodes=2, store_bytes_per_s=10e6))
    assert found.slowest == "receive"
    assert job.bytes / 10e6 <= found.seconds <= 1.3 * job.bytes / 10e6


def test_one_shard_is_made_by_one_node_however_many_there_are() -> None:
    job = of_manifest([manifest([1600])], "s3://bucket", ClipConfig(), 960)
    one, many = (Predictor(job, RATES, CONFIG).predict(replace(CLUSTER, nodes=nodes)) for nodes in (1, 50))
    assert one.actors == many.actors == 1
    assert one.seconds == pytest.approx(many.seconds, rel=0.25)


def test_more_nodes_are_never_slower_and_the_fewest_that_keep_a_deadline_are_found(many: Workload) -> None:
    predictor = Predictor(many, RATES, CONFIG)
    nodes = (1, 2, 7, 40)
    seconds = [predictor.predict(replace(CLUSTER, nodes=count)).seconds for count in nodes]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[-1] == pytest.approx(40, rel=0.1)
    deadline = seconds[1] * 0.99
    assert predictor.nodes_for(CLUSTER, deadline, 1000) == 3
    assert predictor.nodes_for(CLUSTER, deadline, 2) is None


def test_videos_cut_into_shards_are_fetched_by_several_nodes() -> None:
    job = of_alike(400, *HOURS, 20)  # three shards of each video
    predictor = Predictor(job, RATES, CONFIG)
    one, many = (predictor.predict(replace(CLUSTER, nodes=nodes)).fetched for nodes in (1, 40))
    assert one == pytest.approx(1) and 2.5 < many <= 3


def test_what_is_read_written_and_asked_for() -> None:
    job = of_alike(10_000 * 0.64 / 60, *HOURS, 960)  # 16 videos, 960 clips, in a shard
    stored = {"jpeg": 3e5, "raw": 2.4e6, "none": 7e3}
    found = amounts(job, stored, "jpeg", fetched=1.0, actors=2)
    assert (job.videos, job.shards) == (10_000, 625)
    assert found.read == 2 * job.bytes and found.stored["none"] == 7e3 * job.clips
    assert found.puts == 625 * (5 + 2 + 1) + 2  # 288 MB in parts of 64 MiB
    assert found.gets == 20_000 + 2
    assert amounts(job, stored, "none", fetched=0.0, actors=2).puts == 625 * 2 + 2
