"""The policy: the AutoGaze network on plain PyTorch, whose gaze equals the reference's token for token."""

from autogaze.hub import CheckpointError
from autogaze.model.config import AutoGazeConfig
from autogaze.model.policy import AutoGaze, Encoded, Rollout, Stream
from autogaze.model.sampling import Sampling
from autogaze.model.scoring import Scores

__all__ = ["AutoGaze", "AutoGazeConfig", "CheckpointError", "Encoded", "Rollout", "Sampling", "Scores", "Stream"]
