"""A store of videos: its manifest, and the plan of clips to cut from it."""
