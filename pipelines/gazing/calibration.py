"""calibration.json: at which predicted loss a policy stops in each frame, and what that was measured to keep.

`autogaze calibrate` writes it; gaze=policy with calibration= reads it. Nothing here loads a network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.errors import PipelineError
from pipelines.networks.find import find_beside, find_network

CALIBRATION_FORMAT = 1
CALIBRATION_FILE = "calibration.json"
AUTO = "auto"
"""The value of calibration= that means: beside the policy."""
_CUT = ("stride", "fps", "tiles")  # settings of clips that change what frames look like beside each other
_LARGEST = 1 << 20  # bytes that are read of a file


@dataclass(frozen=True)
class Promise:
    """What holds on average over new videos like those that calibrated it.

    Attributes:
        risk: share, of a video's frames over the threshold; or excess, the mean of how far they are over it, in
            thresholds, at most 1 for each.
        target: 1 - the most that the risk may be.
        method: crc or ltt (autogaze.calibration.Method). confidence: of ltt; null for crc.
        bound: of crc, on the risk. p: of ltt, the p-value.
        videos, clips: that carry it. fitted: videos that only the curve was fitted on.
    """

    risk: Literal["share", "excess"]
    target: float
    method: Literal["crc", "ltt"]
    confidence: float | None
    bound: float | None
    p: float | None
    videos: int
    clips: int
    fitted: int


@dataclass(frozen=True)
class Calibration:
    """A calibration. stops: of each frame of a clip, the predicted loss at which it ends.

    threshold: measured error that is promised, in `units`, those of the reconstructor. policy: fingerprint and dtype.
    reconstructor: name and fingerprint. clip: how the clips were cut, as dataset.json has it.
    """

    stops: tuple[float, ...]
    threshold: float
    units: str
    max_ratio: float | None
    promise: Promise
    policy: dict[str, Any]
    reconstructor: dict[str, Any]
    clip: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """All that dataset.json says of it."""
        return {
            "stops": list(self.stops),
            "threshold": self.threshold,
            "units": self.units,
            "reconstructor": self.reconstructor["fingerprint"],
            "promise": asdict(self.promise),
        }

    def require_clips(self, clip: Mapping[str, Any]) -> None:
        """Raise PipelineError, naming what differs, unless clips are cut as those that calibrated it. clip: clip.*"""
        if clip["frames"] != len(self.stops):
            raise PipelineError(
                f"clip.frames={clip['frames']}: the calibration is of clips of {len(self.stops)} frames, and promises "
                "nothing for others; give clip.frames="
                f"{len(self.stops)}, or calibrate on such clips"
            )
        for name in _CUT:
            if name in self.clip and clip[name] != self.clip[name]:
                raise PipelineError(
                    f"clip.{name}={clip[name]}: the calibration is of clips with {self.clip[name]}, and promises "
                    "nothing for others; give the same, or calibrate on such clips"
                )


def to_json(calibration: Calibration, more: Mapping[str, Any]) -> bytes:
    """calibration.json, with what else is to be read there."""
    about = {"format": CALIBRATION_FORMAT} | asdict(calibration) | dict(more)
    return json.dumps(about, indent=1, allow_nan=False).encode() + b"\n"


def from_json(data: bytes, place: str) -> Calibration:
    """What `to_json` wrote. Raises PipelineError, in one line, for anything else."""
    try:
        about = json.loads(data)
        written = about["format"]
        if written != CALIBRATION_FORMAT:
            raise PipelineError(
                f"{place}: has format {written}, this version reads {CALIBRATION_FORMAT}; calibrate again"
            )
        promise = about["promise"]
        stops = tuple(float(stop) for stop in about["stops"])
        numbers = (*stops, float(about["threshold"]), float(promise["target"]))
        if not stops or not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("its stops are not numbers from 0 up, one for each frame")
        return Calibration(
            stops=stops,
            threshold=float(about["threshold"]),
            units=str(about["units"]),
            max_ratio=None if about["max_ratio"] is None else float(about["max_ratio"]),
            promise=Promise(**{name: promise[name] for name in Promise.__dataclass_fields__}),
            policy={"fingerprint": str(about["policy"]["fingerprint"]), "dtype": str(about["policy"]["dtype"])},
            reconstructor={name: str(about["reconstructor"][name]) for name in ("name", "fingerprint")},
            clip=dict(about["clip"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(
            f"{place}: damaged, or not that of autogaze calibrate: {type(error).__name__}: {error}"
        ) from error


def read_calibration(named: str, policy: str) -> Calibration:
    """The calibration that calibration= names: auto, a folder that holds calibration.json, or the file.

    policy: the value of policy.checkpoint=. Raises PipelineError, in one line, when there is none or it is damaged.
    """
    folder = find_network(policy, "policy", "policy.checkpoint") if named == AUTO else named
    place, data = find_beside(folder, CALIBRATION_FILE, _LARGEST)
    if data is None:
        here = (
            f"policy.checkpoint={policy}: has no {CALIBRATION_FILE} beside it" if named == AUTO else f"{place}: missing"
        )
        raise PipelineError(f"{here}; make one with: autogaze calibrate policy.checkpoint={policy}")
    return from_json(data, place)


def require_fits(
    calibration: Calibration,
    named: str,
    *,
    fingerprint: str,
    dtype: str,
    threshold: float | None,
    max_ratio: float | None,
) -> None:
    """Raise PipelineError, in one line, unless a calibration is of this policy and of the limits that are given.

    named: the value of calibration=. threshold, max_ratio: the settings; None: not given.
    """
    own = calibration.policy
    if own["dtype"] != dtype:
        raise PipelineError(
            f"calibration={named}: was measured with policy.dtype={own['dtype']}, and {dtype} predicts other losses; "
            "give the same, or calibrate again"
        )
    if own["fingerprint"] != fingerprint:
        raise PipelineError(
            f"calibration={named}: is of the policy {own['fingerprint'][:12]}, policy.checkpoint= has "
            f"{fingerprint[:12]}; give that policy, or calibrate this one"
        )
    for name, given, its in (
        ("threshold", threshold, calibration.threshold),
        ("max_ratio", max_ratio, calibration.max_ratio),
    ):
        if given is not None and given != its:
            raise PipelineError(
                f"{name}={given}: the calibration is for {name}={its} ({calibration.units}); leave {name}= out, or "
                "calibrate for this one"
            )
