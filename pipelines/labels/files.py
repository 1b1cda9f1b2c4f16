"""Label files in the reference's format, read for the clips of a plan.

A label file is one JSON object: the last three parts of a video's path -> ids and losses of its frames (docs/method.md,
section 'Gaze layouts'). The reference knows one clip per video; so a clip from frame 0 has the video's own key, later
ones append #<first frame>, and tiles their name. What the reference does not read (units, initial losses) stands beside
what it does.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from autogaze.patches import PatchVocabulary
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.errors import PipelineError
from pipelines.labels import json_stream
from pipelines.labels.kept import KeptLabels
from pipelines.labels.keys import video_key
from pipelines.storage import store
from pipelines.storage.location import Location

_LARGEST = float(np.finfo(np.float32).max)


@dataclass
class Labels(AbstractContextManager["Labels"]):
    """What label files hold for the clips of a plan. Close it, or use it as a context manager: it has a file.

    Attributes:
        kept: the labels, as the bytes of gaze.npz: they are small, and equal exactly where the gazes are.
        units: of the losses; None where the files do not say.
        files: sha256 of each file by its name.
        used: how many labels are of clips of the plan ...
        unused: ... and how many are not.
        example: a key of the files, for messages.
    """

    kept: KeptLabels
    units: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    used: int = 0
    unused: int = 0
    example: str = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kept.close()


def read_labels(
    urls: Sequence[str], plan: DatasetPlan, vocabulary: PatchVocabulary, with_losses: bool = True
) -> Labels:
    """Read label files, one clip at a time, and keep the labels of a plan's clips.

    with_losses: False leaves their losses out, so that labels need have none.

    A key that is the whole path of a video of the plan names that one; others are cut to the last three parts of a
    path. An entry that says its clip failed is no label. A clip may be labelled twice if the labels are equal.
    Raises PipelineError, naming file and key: not JSON; a key that two videos share; ids, losses or frames that do not
    fit the clip; two labels of a clip that differ; losses in several units; no room on the disk for the labels.
    """
    labels = Labels(KeptLabels(plan))
    try:
        for url in urls:
            name, digest = _distinct_name(url, labels.files), hashlib.sha256()
            for full, entry in _entries(url, digest.update):
                _read_label(labels, url, full, entry, vocabulary, with_losses)
            labels.files[name] = digest.hexdigest()
    except BaseException:
        labels.kept.close()
        raise
    return labels


def _read_label(
    labels: Labels, url: str, full: str, entry: Any, vocabulary: PatchVocabulary, with_losses: bool
) -> None:
    found = labels.kept.by_path(full)
    key = full if found else video_key(full)
    labels.example = labels.example or key
    if isinstance(entry, dict) and "failed" in entry:
        return
    found = found or labels.kept.by_key(key)
    if not found:
        labels.unused += 1
        return
    if len(found) > 1:
        raise PipelineError(
            f"{url}: {full}: is a label of {found[0].video} and of {found[1].video}; labels that export-labels writes "
            "with keys=full tell them apart"
        )
    (clip,) = found
    try:
        gaze = (_gaze_of if with_losses else _tokens_of)(entry, clip.frames, clip.stride, vocabulary)
        units = entry.get("units") if with_losses else None
        if labels.used and units != labels.units:
            raise ValueError(f"its losses are in units {units!r}, those before in {labels.units!r}")
        if not labels.kept.keep(clip, gaze):
            raise ValueError("has two labels that differ")
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{url}: {full}: {error}") from error
    labels.units = units
    labels.used += 1


def _distinct_name(url: str, names: dict[str, str]) -> str:
    """The file's name, with as much of its path as makes it unlike the others."""
    parts = url.split("/")
    return next(name for n in itertools.count(1) if (name := "/".join(parts[-n:])) not in names)


def _gaze_of(entry: Any, frames: int, stride: int, vocabulary: PatchVocabulary) -> bytes:
    """A label as the bytes of gaze.npz. Raises ValueError or TypeError, which says what does not fit."""
    import torch  # here, not above: a job is checked before it is loaded

    from autogaze.gaze import Gaze

    ids = _ids_of(entry, frames, stride, vocabulary)
    if "task_losses" not in entry:
        raise ValueError("has no task_losses; measure=canvas measures the errors on the frames of data instead")
    losses = _frames_of(entry, "task_losses", frames)
    for t, part in enumerate(losses):
        if len(part) != len(ids[t]):
            raise ValueError(f"frame {t} has {len(ids[t])} ids and {len(part)} losses")
    initial = entry.get("initial_losses")
    if initial is None and not all(ids):
        raise ValueError(f"frame {ids.index([])} has no id, and no initial_losses say what its error is")
    for number in [*itertools.chain(*losses), *(initial or [])]:
        if type(number) not in (int, float) or not abs(number) <= _LARGEST:
            raise ValueError(f"a loss is {json.dumps(number)[:40]}, which is no number that float32 holds")
    gaze = Gaze.from_label(entry, vocabulary)
    places, slots = entry.get("places"), entry.get("slots")
    for number in [*itertools.chain(*(places or [])), *(slots or [])]:
        if type(number) is not int:
            raise ValueError(f"places and slots hold {json.dumps(number)[:40]}, which is no whole number")
    places = None if places is None else torch.tensor([place for part in places for place in part], dtype=torch.int64)
    return Gaze(
        tokens=gaze.tokens,
        lengths=gaze.lengths,
        losses=gaze.losses,
        initial=None if initial is None else torch.tensor([initial], dtype=torch.float32),
        vocabulary=vocabulary,
        places=places,
        slots=None if slots is None else torch.tensor([slots], dtype=torch.int64),
    ).to_npz()


def _tokens_of(entry: Any, frames: int, stride: int, vocabulary: PatchVocabulary) -> bytes:
    """The patches of a label, without losses, as the bytes of gaze.npz. Raises as `_gaze_of` does."""
    from autogaze.gaze import Gaze  # here, not above: a job is checked before it is loaded

    ids = _ids_of(entry, frames, stride, vocabulary)
    tokens = [[id - t * vocabulary.size for id in part] for t, part in enumerate(ids)]
    return Gaze.from_lists([tokens], vocabulary=vocabulary).to_npz()


def _ids_of(entry: Any, frames: int, stride: int, vocabulary: PatchVocabulary) -> list[list[int]]:
    """The ids of a label, a list for each frame, checked against its clip. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"a label is an object, this is {json.dumps(entry)[:40]}")
    size = vocabulary.size
    for name, ours in (
        ("stride", stride),
        ("scales", list(vocabulary.scales)),
        ("patch_size", vocabulary.patch_size),
    ):
        if entry.get(name, ours) != ours:
            raise ValueError(f"has {name} {entry[name]}, the dataset {ours}")
    ids = _frames_of(entry, "gazing_pos", frames)
    for t, part in enumerate(ids):
        for id in part:
            if type(id) is not int or not t * size <= id < (t + 1) * size:
                raise ValueError(f"frame {t} holds id {json.dumps(id)}; its ids are {t * size}..{(t + 1) * size - 1}")
    return ids


def _frames_of(entry: dict[str, Any], name: str, frames: int) -> list[list[Any]]:
    lists = entry.get(name)
    if not (isinstance(lists, list) and all(isinstance(part, list) for part in lists)):
        raise ValueError(f"{name} must be a list with a list for each frame")
    if len(lists) != frames:
        raise ValueError(f"{name} has {len(lists)} frames, the clip {frames}")
    return lists


def _entries(url: str, on_bytes: Callable[[bytes], object]) -> Iterator[tuple[str, Any]]:
    """Keys and labels of a file, in order; `on_bytes` is called with its bytes. Raises PipelineError."""
    try:
        with store.open_read(url) as file:
            yield from json_stream.read_items(file, on_bytes=on_bytes)
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no such file") from error
    except ValueError as error:
        raise PipelineError(f"{url}: not a JSON object of labels: {error}") from error


def label_files(pattern: str) -> list[str]:
    """The label files that `pattern` names: paths or URLs separated by commas, each of which may be a glob.

    Raises PipelineError for a part that names no file.
    """
    files: list[str] = []
    parts = [pattern] if os.path.exists(pattern) else pattern.split(",")
    for part in (Location(part.strip()) for part in parts if part.strip()):
        if part.is_local:
            names = [part] if os.path.isfile(part) else sorted(filter(os.path.isfile, glob.glob(part, recursive=True)))
        elif any(character in part for character in "*?["):
            names = store.glob(part)
        else:
            names = [part] if store.exists(part) else []
        if not names:
            raise PipelineError(f"labels={part}: no such file" + (", but a folder" if os.path.isdir(part) else ""))
        files += [name for name in names if name not in files]
    return files
