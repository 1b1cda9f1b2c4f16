"""Training on a GPU: the same steps as on a CPU, in float32 to rounding; ranks over NCCL; rollouts that share a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("pandas", reason="pandas and pyarrow, which datasets are read with, are not installed")
pytest.importorskip("pyarrow", reason="pandas and pyarrow, which datasets are read with, are not installed")

from pipelines.loading.config import ReadConfig
from pipelines.rl.config import ObjectiveConfig, RLConfig, RolloutsConfig, SampleConfig
from pipelines.rl.task import RLTask
from pipelines.runs.events import read_events
from pipelines.train.config import (
    EveryConfig,
    OptimizerConfig,
    PolicySizeConfig,
    PolicyTrainConfig,
    ReconstructorSizeConfig,
    ReconstructorTrainConfig,
    ScaleConfig,
)
from pipelines.train.loop import train
from pipelines.train.policy import PolicyTask
from pipelines.train.reconstructor import ReconstructorTask
from pipelines.train.task import RandomKey

TASKS = {PolicyTrainConfig: PolicyTask, ReconstructorTrainConfig: ReconstructorTask, RLConfig: RLTask}
BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
STEPS = 3
TINY = ReconstructorSizeConfig(
    hidden_size=48, num_layers=2, num_heads=4, decoder_hidden_size=32, decoder_num_layers=2, decoder_num_heads=4
)


def load_clips():
    """benchmarks/clips.py, which is no package."""
    spec = importlib.util.spec_from_file_location("benchmark_clips", BENCHMARKS / "clips.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A dataset of 8 clips with 4 tokens a frame."""
    made = load_clips()
    frames = made.drawn(8)
    return made.write_dataset(tmp_path_factory.mktemp("data"), frames, made.labelled(frames, 4))


@pytest.fixture
def run(data, tmp_path):
    """Events of STEPS steps of a run: run(kind, device, **changes of the config)."""

    def of(kind: type, device: torch.device, **changes):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        config = config_of(kind, data, str(folder), device.type, **changes)
        assert train(config, TASKS[kind]) == "done"
        events = read_events(str(folder))
        return events[events["kind"] == "step"].reset_index(drop=True)

    return of


def config_of(kind: type, data: str, run: str, device: str, dtype: str = "float32", **changes):
    common = {
        "data": data,
        "run": run,
        "steps": STEPS,
        "global_batch": 4,
        "micro_batch": 2,
        "optimizer": OptimizerConfig(schedule="constant"),
        "loader": ReadConfig(val_fraction=0.0, workers=0),
        "every": EveryConfig(checkpoint=0, validate=0),
        "val_clips": 0,
        "scale": ScaleConfig(device=device, dtype=dtype),
    }
    if kind is ReconstructorTrainConfig:
        return kind(**common | changes, model=TINY)
    common |= {"policy": PolicySizeConfig(hidden_size=48, num_layers=2, num_heads=3, intermediate_size=96)}
    if kind is RLConfig:
        common |= {"global_batch": 2, "micro_batch": 1, "max_ratio": 0.03}
        common |= {"sample": SampleConfig(group=4, strategy="ratio", min_temperature=1.0)}
        common |= {"objective": ObjectiveConfig(frames=2)}
    return kind(**common | changes)


@pytest.mark.parametrize("kind", [PolicyTrainConfig, ReconstructorTrainConfig, RLConfig])
def test_losses_and_gradients_of_the_first_steps_equal_the_cpus(run, device, kind):
    on_cpu, found = run(kind, torch.device("cpu")), run(kind, device)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], on_cpu[name], rtol=2e-3, atol=1e-5, err_msg=name)


def test_rewards_of_rollouts_on_the_device_equal_the_cpus(run, device):
    """Drawn tokens are the same, and canvas errors are exact: so are the rewards."""
    on_cpu, found = run(RLConfig, torch.device("cpu")), run(RLConfig, device)
    np.testing.assert_allclose(found["reward"][:1], on_cpu["reward"][:1], rtol=1e-6)


@pytest.mark.parametrize("kind", [PolicyTrainConfig, ReconstructorTrainConfig, RLConfig])
def test_bfloat16_steps_stay_near_those_of_float32(run, device, kind):
    exact, half = run(kind, device), run(kind, device, dtype="bfloat16")
    first = abs(half["loss"][0] - exact["loss"][0])
    assert first <= 0.02 * abs(exact["loss"][0]) + 0.02, (exact["loss"].tolist(), half["loss"].tolist())


@pytest.mark.parametrize("changed", [{"micro_tokens": 1500}, {"recompute": True}], ids=str)
def test_parts_by_tokens_and_layers_computed_again_change_rounding_alone(run, device, changed):
    whole, found = run(ReconstructorTrainConfig, device), run(ReconstructorTrainConfig, device, **changed)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], whole[name], rtol=2e-3, atol=1e-5, err_msg=name)


def test_a_rank_over_nccl_has_the_gradients_of_no_ranks(data, device, tmp_path, monkeypatch):
    """One rank: DistributedDataParallel, its buckets and an all-reduce of NCCL (gloo on a CPU) change no gradient."""
    config = config_of(PolicyTrainConfig, data, str(tmp_path / "run"), device.type)
    task = PolicyTask(config, device)
    made = load_clips()
    frames = torch.from_numpy(made.drawn(2)).to(device)
    gaze = made.labelled(made.drawn(2), 4)
    key, totals = RandomKey(0, 0, (0, 1)), [float(gaze.counts().sum()) / 2]

    def gradients(model) -> list[torch.Tensor]:
        task.module.zero_grad()
        task.losses(model, frames, gaze, key, totals)["loss"].mean().backward()
        return [parameter.grad.clone() for parameter in task.module.parameters()]

    alone = gradients(task.module)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        found = gradients(DistributedDataParallel(task.module))
    finally:
        dist.destroy_process_group()
    for one, other in zip(alone, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_rollout_actors_that_share_a_gpu_make_what_the_learner_makes(run, device, monkeypatch):
    """Two actors on a quarter of the GPU each; with the same lag, the same groups and so the same losses."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # which Ray reads when it is imported
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    own = run(RLConfig, device, rollouts=RolloutsConfig(lag=1))
    # Actors are forked from workers that must find the packages that lie beside the tests.
    path = ":".join([str(BENCHMARKS.parent), *sys.path])
    gpus = {"num_gpus": 1} if device.type == "cuda" else {}
    # "local": not another Ray that runs on this machine.
    environment = {"env_vars": {"PYTHONPATH": path}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, runtime_env=environment, **gpus)
    try:
        share = 0.25 if device.type == "cuda" else 0.0
        found = run(RLConfig, device, rollouts=RolloutsConfig(actors=2, lag=1, gpus=share, timeout_s=120))
    finally:
        ray.shutdown()
    np.testing.assert_allclose(found["loss"], own["loss"], rtol=2e-3, atol=1e-5)
