"""Rate and duration of a video, by the time stamps of its frames; by the header only where there are none.

Headers lie: variable-rate recordings state their highest rate, AVI that of fields, mp4 an average that one long last
frame ruins. The rate is frames over time: (frames - 1) / (last time stamp - first).
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipelines.video.frame_index import NO_TIME, Timing

# In transport and program streams a clock that goes back, or further ahead than this, is another clock: recordings were
# joined (the limit is ffmpeg's own).
_JUMP_S = 10


def measure(times: np.ndarray, last: int, time_base: Fraction, free_running: bool) -> Timing:
    """Of frames in the order they are shown.

    times: int64 [frames], NO_TIME where there is none: such a frame counts as shown half-way between others. last: how
    long the last frame is shown, 0 if unknown. Both in units of time_base. free_running: the container's clock may
    jump, and that is no time.
    """
    stamped = np.flatnonzero(times != NO_TIME)
    steps, counts = np.diff(times[stamped]), np.diff(stamped)
    jumps = steps < 0
    if free_running:
        jumps |= steps > _JUMP_S / time_base
    whole = int(steps[~jumps].sum())
    if whole == 0:
        alone = len(times) == 1 and last > 0
        return Timing(duration=float(last * time_base), duration_source="timestamps") if alone else Timing()
    step = Fraction(whole, int(counts[~jumps].sum()))
    around = int(counts[jumps].sum()) + int(stamped[0]) + len(times) - 1 - int(stamped[-1])
    duration = whole + around * step + (last if last > 0 else step)
    return Timing(float(1 / (step * time_base)), "timestamps", float(duration * time_base), "timestamps")


def or_header(timing: Timing, frames: int, rate: Fraction | None, duration: Fraction | None) -> Timing:
    """With what the header says in the place of what time stamps do not say.

    rate: frames a second. duration: seconds; where it says none, frames / rate.
    """
    fps, fps_source = timing.fps, timing.fps_source
    seconds, seconds_source = timing.duration, timing.duration_source
    if not fps_source and rate:
        fps, fps_source = float(rate), "header"
    if not seconds_source and duration:
        seconds, seconds_source = float(duration), "header"
    if not seconds_source and fps:
        seconds, seconds_source = frames / fps, "header"
    return Timing(fps, fps_source, seconds, seconds_source)
