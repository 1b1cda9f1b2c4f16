"""Is a dataset or run sound, how good is it, how far along, and can a job start."""
