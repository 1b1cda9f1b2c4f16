"""What the parts of a job cost on one core, or one GPU, of a machine; kept as a small JSON file.

autogaze size input=manifest.parquet rates=node.json        # on a node: measures, and writes node.json
autogaze size hours=1e6 rates=node.json nodes=100           # anywhere: reads it
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipelines.errors import PipelineError
from pipelines.gazing.settings import GazeSettings
from pipelines.sizing.workload import Piece
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.storage.retry import StoreError

FORMAT = 1


@dataclass(frozen=True)
class DecodeRates:
    """Seconds of a core that decoding takes.

    Attributes:
        video: to open one, and find its frames.
        megapixel: for each million pixels of the frames that are decoded.
        frame: for each frame that is taken: scaled to the model's size and handed over.
        codecs: what all of it is multiplied with, by codec; 1 for others.
        spread: measured / these, of the pieces that were measured: what videos differ by.
    """

    video: float
    megapixel: float
    frame: float
    codecs: Mapping[str, float]
    spread: tuple[float, ...] = (1.0,)

    def of(self, piece: Piece) -> float:
        """Seconds for a piece of a shard, on the average of its kind."""
        work = self.video + self.megapixel * piece.decoded * piece.megapixels + self.frame * piece.taken
        return work * self.codecs.get(piece.codec, 1.0)


@dataclass(frozen=True)
class Rates:
    """What the parts of a job cost.

    Attributes:
        machine: what it was measured on, in words, and `at_once`: on how many of its cores at a time.
        decoder: of the videos.
        gaze: what gazed, and `device`: on what: cpu, cuda or mps.
        frames: of a clip.
        decode: seconds of a core.
        batch: clips that are gazed at together.
        jpeg, write: seconds of a core for a clip: to encode its frames, and to pack it into a shard.
        search: seconds of a core, or of the device, to gaze at a clip.
        shard: seconds of a core for a shard, whatever it holds.
        stored: bytes a clip takes in a dataset, with its part of the index, by how frames are stored.
        together: what the seconds of a core are multiplied with where the parts work side by side, in an actor.
        start: seconds of a core for a decoder to start.
    """

    machine: str
    at_once: int
    decoder: str
    gaze: str
    device: str
    frames: int
    batch: int
    decode: DecodeRates
    jpeg: float
    write: float
    search: float
    shard: float
    stored: Mapping[str, float]
    together: float = 1.0  # so in files of older versions, which did not measure it
    start: float = 0.0

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1).encode() + b"\n"


def gaze_words(settings: GazeSettings) -> str:
    """What gazes and until when, as far as it changes what a clip costs. Paths of checkpoints are left out."""
    words = [settings.gaze, f"threshold={settings.threshold}", f"max_ratio={settings.max_ratio}"]
    if settings.gaze == "policy":
        words += [f"dtype={settings.policy.dtype}", f"batch={settings.policy.batch}", f"verify={settings.verify}"]
    elif settings.by_learned:
        words += [f"dtype={settings.reconstructor.dtype}", f"candidates={settings.labels.candidates}"]
        words += [f"step={settings.labels.step}"]
    return " ".join(words).replace("None", "null")


def write_rates(rates: Rates, url: str) -> None:
    """Write the file. Raises StoreError."""
    store.publish(rates.to_json(), Location(url))


def read_rates(url: str) -> Rates | None:
    """The rates of a file; None where there is none. Raises PipelineError for one that is damaged."""
    try:
        data = json.loads(store.read(Location(url)))
    except FileNotFoundError:
        return None
    except StoreError as error:
        raise PipelineError(f"rates={error}; give the name of a file") from error
    except ValueError as error:
        raise _damaged(url, str(error)) from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise _damaged(url, f"no rates of format {FORMAT}")
    try:
        decode = data["decode"]
        decode = DecodeRates(**{**decode, "spread": tuple(decode["spread"])})
        rates = Rates(**{**data, "decode": decode})
        for each in (rates, decode):
            _require_numbers(each)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(url, str(error)) from error
    return rates


def require_rates(rates: Rates, url: str, decoder: str, gaze: str, device: str, frames: int) -> None:
    """Raise PipelineError, in one line, for rates of other work than the job's."""
    wanted = {"decoder": decoder, "gaze": gaze, "device": device, "frames": frames}
    keys = {"frames": "clip.frames"}
    for name, value in wanted.items():
        if (measured := getattr(rates, name)) != value:
            key = keys.get(name, name)
            raise PipelineError(
                f"rates={url}: measured with {key}={measured}, and the job has {key}={value}; give another file, which "
                "is then measured"
            )


def _require_numbers(part: Any) -> None:
    """Raise ValueError unless all that should be numbers are, and not negative."""
    for each in fields(part):
        value = getattr(part, each.name)
        numbers = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        for number in numbers:
            if each.type in ("float", "int", "Mapping[str, float]", "tuple[float, ...]") and not (
                isinstance(number, (int, float)) and math.isfinite(number) and number >= 0
            ):
                raise ValueError(f"{each.name} is {number!r}, no number of at least 0")


def _damaged(url: str, what: str) -> PipelineError:
    return PipelineError(f"rates={url}: is no file of autogaze size ({' '.join(what.split())}); give another name")
