"""The reference's label files, out and in."""
