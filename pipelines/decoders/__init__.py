"""The decoders behind pipelines.decode: one module per back end, and the child process they run in."""
