"""Rollouts, rewards and GRPO around the training loop."""
