"""Which videos trained a policy, also by way of the policies that it began from."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipelines.inspection.trained_on import videos_of_policy
from tests.support.training import write_dataset


def run_of(folder: Path, data: str, init: str) -> str:
    """A run that leaves a checkpoint; the folder of its policy."""
    step = folder / "checkpoints" / "step-000001"
    (step / "policy").mkdir(parents=True)
    (step / "policy" / "config.json").write_text('{"model_type": "autogaze"}')
    (step / "policy" / "model.safetensors").write_bytes(b"")
    (step / "state.json").write_text("{}")
    (folder / "checkpoints" / "latest").write_text("step-000001\n")
    config = {"data": data, "init": init, "loader": {"val_fraction": 0.25}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "PolicyTrainConfig", "config": config}))
    return str(step / "policy")


def test_a_run_that_was_begun_from_by_its_folder_counts_too(tmp_path: Path) -> None:
    first, second = (write_dataset(tmp_path / name, clips=8) for name in ("a", "b"))
    run_of(tmp_path / "ntp", first, "")
    found = videos_of_policy(run_of(tmp_path / "rl", second, str(tmp_path / "ntp")))
    assert found.datasets == [second, first] and found.known


def test_weights_from_elsewhere_leave_open_what_trained_them(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "a", clips=8)
    found = videos_of_policy(run_of(tmp_path / "rl", data, "nvidia/AutoGaze"))
    assert found.datasets == [data] and found.lost == ["nvidia/AutoGaze"] and not found.known
    gone = videos_of_policy(run_of(tmp_path / "other", data, str(tmp_path / "gone")))
    assert not gone.known
