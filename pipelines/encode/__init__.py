"""From gazed patches to token features, on Ray Data."""
