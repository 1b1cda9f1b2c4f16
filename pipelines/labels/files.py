"""Gaze as the reference's label files: out of a dataset, and into a new one beside its frames.

A label file is one JSON object: the last three parts of a video's path -> ids and losses of its frames (docs/method.md,
section 'Gaze layouts'). The reference knows one clip per video; so a clip from frame 0 has the video's own key, later
ones append #<first frame>, and tiles their name. What the reference does not read (units, initial losses) stands beside
what it does.

Files are read and written clip by clip: neither an export nor the text of an import is ever held whole.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from pipelines.errors import PipelineError
from pipelines.labels.keys import clip_keys, video_key
from pipelines.storage import store
from pipelines.storage import urls as store_urls

_CHUNK = 1 << 20
_LARGEST = torch.finfo(torch.float32).max
_CUT = 16  # of what a chunk's end cuts in two, JSON's parser names a place at most this far before it


# -- out ---------------------------------------------------------------------------------------------------------


# -- in ----------------------------------------------------------------------------------------------------------


@dataclass
class Labels:
    """The labels of a plan's clips.

    Attributes:
        gazes: by clip name, as gaze.npz: small, and equal exactly where the gazes are.
        units: what their losses measure; None where the files do not say.
        files: sha256 of each file by its name.
        unused: labels of clips that the plan does not have.
        example: a key of the files.
    """

    gazes: dict[str, bytes] = field(default_factory=dict)
    units: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    unused: int = 0
    example: str = ""


def read_labels(urls: Sequence[str], plan: pd.DataFrame, vocabulary: PatchVocabulary) -> Labels:
    """The labels of a plan's clips out of label files; keys are cut to the last three parts of a path.

    An entry that says its clip failed is none. Labels in two files are one if they are equal.
    Raises PipelineError, naming file and key: no JSON, ids, losses or frames that do not fit, a clip labelled in two
    ways, labels in several units.
    """
    rows = zip(clip_keys(plan), plan["clip"], plan["frames"].tolist(), plan["stride"].tolist(), strict=True)
    wanted = {key: (clip, frames, stride) for key, clip, frames, stride in rows}
    labels = Labels()
    for url in urls:
        name = _name_apart(url, labels.files)
        digest = hashlib.sha256()
        for full, entry in _entries(url, digest):
            key = video_key(full)
            labels.example = labels.example or key
            if isinstance(entry, dict) and "failed" in entry:
                continue
            if key not in wanted:
                labels.unused += 1
                continue
            clip, frames, stride = wanted[key]
            try:
                gaze = _gaze_of(entry, frames, stride, vocabulary)
                units = entry.get("units")
                if labels.gazes and units != labels.units:
                    raise ValueError(f"its losses are in units {units!r}, those before in {labels.units!r}")
                if labels.gazes.get(clip, gaze) != gaze:
                    raise ValueError("has two labels that differ")
            except (ValueError, TypeError) as error:
                raise PipelineError(f"{url}: {full}: {error}") from error
            labels.gazes[clip], labels.units = gaze, units
        labels.files[name] = digest.hexdigest()
    return labels


def _name_apart(url: str, names: dict[str, str]) -> str:
    """The file's name, with as much of its path as tells it from the others."""
    parts = url.split("/")
    return next(name for n in itertools.count(1) if (name := "/".join(parts[-n:])) not in names)


def _gaze_of(entry: Any, frames: int, stride: int, vocabulary: PatchVocabulary) -> bytes:
    """A label as gaze.npz. Raises ValueError or TypeError, saying what of it does not fit."""
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
    ids, losses = (_frames_of(entry, name, frames) for name in ("gazing_pos", "task_losses"))
    for t, part in enumerate(ids):
        for id in part:
            if type(id) is not int or not t * size <= id < (t + 1) * size:
                raise ValueError(f"frame {t} holds id {json.dumps(id)}; its ids are {t * size}..{(t + 1) * size - 1}")
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
    return Gaze(
        gaze.tokens,
        gaze.lengths,
        gaze.losses,
        None if initial is None else torch.tensor([initial], dtype=torch.float32),
        vocabulary,
        None if places is None else torch.tensor([place for part in places for place in part], dtype=torch.int64),
        None if slots is None else torch.tensor([slots], dtype=torch.int64),
    ).to_npz()


def _frames_of(entry: dict[str, Any], name: str, frames: int) -> list[list[Any]]:
    lists = entry.get(name)
    if not (isinstance(lists, list) and all(isinstance(part, list) for part in lists)):
        raise ValueError(f"{name} must be a list with a list for each frame")
    if len(lists) != frames:
        raise ValueError(f"{name} has {len(lists)} frames, the clip {frames}")
    return lists


def _entries(url: str, digest: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that holds one JSON object, in order; `digest` takes in its bytes.

    Raises PipelineError, naming the last key that could be read, where it is not JSON.
    """
    decoder, incremental = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, last = "", 0, ""

    def more() -> bool:
        nonlocal text, at
        data = source.read(_CHUNK)
        digest.update(data)
        text, at = text[at:] + incremental.decode(data, final=not data), 0
        return bool(data)

    def peek() -> str:
        """The next character that is no white space; "" at the end."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    def expect(characters: str) -> str:
        nonlocal at
        found = peek()
        if not found or found not in characters:
            raise ValueError(f"expected {' or '.join(characters)}, found {json.dumps(found) if found else 'the end'}")
        at += 1
        return found

    def value() -> Any:
        nonlocal at
        peek()
        while True:
            try:
                found, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(text) - _CUT or error.msg.startswith("Unterminated string")
                if not cut or not more():  # what is there will not become JSON by more text
                    raise
                continue
            if end < len(text) or not more():  # a number could go on in the next chunk
                at = end
                return found

    try:
        with store.open_read(url) as source:
            expect("{")
            if peek() == "}":
                at += 1
            else:
                while True:
                    key = value()
                    if not isinstance(key, str):
                        raise ValueError(f"a key is {json.dumps(key)[:40]}, not a text")
                    expect(":")
                    last = key
                    yield key, value()
                    if expect(",}") == "}":
                        break
            if peek():
                raise ValueError("there is more text after the object")
    except FileNotFoundError as error:
        raise PipelineError(f"{url}: no such file") from error
    except (ValueError, RecursionError) as error:
        where = f" (at or after key {last})" if last else ""
        raise PipelineError(f"{url}: not a JSON object of labels: {error}{where}") from error


def label_files(pattern: str) -> list[str]:
    """The files that a text names: paths or URLs with commas between, each of which may be a glob.

    Raises PipelineError for one that names no file.
    """
    found: list[str] = []
    parts = [pattern] if store_urls.is_local(pattern) and os.path.exists(pattern) else pattern.split(",")
    for part in (store_urls.normalise(part.strip()) for part in parts if part.strip()):
        if store_urls.is_local(part):
            names = [part] if os.path.isfile(part) else sorted(filter(os.path.isfile, glob.glob(part, recursive=True)))
        elif any(character in part for character in "*?["):
            names = store.glob(part)
        else:
            names = [part] if store.exists(part) else []
        if not names:
            raise PipelineError(f"labels={part}: no such file" + (", but a folder" if os.path.isdir(part) else ""))
        found += [name for name in names if name not in found]
    return found
