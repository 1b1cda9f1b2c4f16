"""What a training run leaves: checkpoints, events, an auditable ledger."""
