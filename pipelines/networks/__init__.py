"""Which network a user names (a run, a step, a folder, a hub id), and opening it."""
