"""From corpus to dataset, on Ray Data."""
