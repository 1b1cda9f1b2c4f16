"""Which network a user names, and opening it."""
