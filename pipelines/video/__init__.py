"""The decoders behind pipelines.video.decode: one module per back end, and the child process they run in."""
