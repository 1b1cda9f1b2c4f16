"""The AutoGaze method on plain PyTorch: patches, gaze, reconstruction and greedy labels.

Nothing here knows of storage, clusters or command lines (docs/architecture.md).
"""

__version__ = "0.1.0"
