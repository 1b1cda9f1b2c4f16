"""Which sample is trained when, and how one rank reads it."""
