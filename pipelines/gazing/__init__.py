"""What gazes at clips: greedy search on canvas or the learned reconstructor, or the policy."""
