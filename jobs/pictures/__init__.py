"""What draws: contact sheets, tiles, charts and curves."""
