"""The ways of gazing that evaluate compares, by name. Nothing here imports torch: a wrong name is refused at once."""

from __future__ import annotations

METHODS = ("stored", "greedy", "frame_difference", "coarse_to_fine", "random")
"""Measured by reconstruction error and by features."""
POLICY = "policy"
"""A further one, where a policy is given."""
EVERY_NTH, MERGING = "every_nth_frame", "token_merging"
OF_FEATURES = ("stalest", EVERY_NTH, MERGING)
"""Further ones, where an encoder is given: measured by features alone."""
