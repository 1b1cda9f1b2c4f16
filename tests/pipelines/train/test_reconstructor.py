"""What the reconstructor's training is told about a checkpoint it cannot begin from."""

import json
import shutil

import pytest
import torch

from pipelines.errors import PipelineError
from pipelines.train.config import ReconstructorTrainConfig
from pipelines.train.reconstructor import ReconstructorTask
from tests.support import places

CHECKPOINT = places.GOLDEN / "videomae_tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_weights": "1+0.3"}, "loss_type l1 and loss_weights 1[+]0.3 must have as many terms"),
        ({"loss_type": "l1+dinov2_reg", "loss_weights": "1+0.3"}, "its teacher dinov2_reg is not given"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path, change, message):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "videomae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(PipelineError, match=message) as refusal:
        ReconstructorTask(ReconstructorTrainConfig(init=str(folder)), torch.device("cpu"))
    assert "\n" not in str(refusal.value)
