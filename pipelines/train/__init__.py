"""The training loop, what it trains, and where its ranks run."""
