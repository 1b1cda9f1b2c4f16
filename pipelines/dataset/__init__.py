"""The format of a dataset: shards, index, frames, targets and the records of the runs that made it."""
