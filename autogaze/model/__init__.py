"""The policy: the AutoGaze network, written for this job on plain PyTorch, equal to the reference token for token."""

from autogaze.hub import CheckpointError
from autogaze.model.config import AutoGazeConfig
from autogaze.model.policy import AutoGaze, Encoded, Rollout, Stream
from autogaze.model.sampling import Sampling
from autogaze.model.scoring import Scores

__all__ = ["AutoGaze", "AutoGazeConfig", "CheckpointError", "Encoded", "Rollout", "Sampling", "Scores", "Stream"]
