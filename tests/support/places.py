"""Where the tests find what lies in the repository, and the shared corpus beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CORPUS = ROOT.parent / "shared" / "corpus"
"""158 real videos that a user's clone does not have; tests that need them skip there."""
