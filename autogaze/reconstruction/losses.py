"""The error of reconstructed frames: in pixels (l1) and in the features of frozen teachers.

See docs/method.md, section 'Frame losses'.

    loss = FrameLoss.from_config("l1+dinov2_reg+siglip2", "1+0.3+0.3", {"dinov2_reg": folder, "siglip2": folder})
    targets = loss.targets(original)               # teacher features of the originals, computed once
    error = loss(predicted, original, targets)     # [N], differentiable in `predicted`

Frames are floats [N, 3, S, S] as the reconstructor sees them: pixels in [-1, 1], then ImageNet's mean and deviation
applied to that (autogaze/images.py). Teachers are ordinary transformers checkpoints, by folder or hub id.
"""

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autogaze import hub
from autogaze.attention import of_new_shapes
from autogaze.device import constant
from autogaze.hub import CONFIG, PREPROCESSOR, CheckpointError
from autogaze.images import MEAN, STD, to_model_size
from autogaze.precision import exact_convolutions
from autogaze.quiet import quiet

LAYERS = 4
"""How many of a teacher's last hidden states are concatenated to its features. None of them is normalised."""


class TeacherError(ValueError):
    """A teacher is missing or does not fit. One line that says what to do."""


@dataclass(frozen=True)
class _Kind:
    """A teacher that losses name. mean, std: of pixels in [0, 1], unless the teacher's folder has its own."""

    released: str  # hub id
    model_types: tuple[str, ...]  # in config.json
    model_class: str  # in transformers
    mean: tuple[float, ...]
    std: tuple[float, ...]


_KINDS = {
    "dinov2_reg": _Kind(
        "facebook/dinov2-with-registers-base", ("dinov2_with_registers",), "Dinov2WithRegistersModel", MEAN, STD
    ),
    "dinov2": _Kind("facebook/dinov2-base", ("dinov2",), "Dinov2Model", MEAN, STD),
    # SigLIP 2 of a fixed resolution is SigLIP's network; "siglip2" in a config.json is the one of any resolution.
    "siglip2": _Kind(
        "google/siglip2-base-patch16-224",
        ("siglip", "siglip_vision_model"),
        "SiglipVisionModel",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
    ),
}


_OF_ANY_SIZE = ("dinov2_reg", "dinov2")


class Teacher(nn.Module):
    """A frozen feature extractor. It stays in eval mode and its parameters need no gradient; its input may.

    name: "dinov2_reg", "dinov2" or "siglip2". weight: of its loss in the sum. size: side of its images, in pixels.
    """

    def __init__(
        self, name: str, model: nn.Module, mean: Sequence[float], std: Sequence[float], size: int, weight: float = 0.3
    ) -> None:
        """model: its transformers model. mean, std: of each channel of the pixels in [0, 1] it was trained on."""
        super().__init__()
        self.name, self.weight, self.size = name, _checked_weight(name, weight), size
        self.model = model.requires_grad_(False).eval()
        config: Any = model.config
        # The class and register tokens.
        self._dropped = {"dinov2_reg": 1 + getattr(config, "num_register_tokens", 0), "dinov2": 1}.get(name, 0)
        # Our input is (2 * pixel - 1 - MEAN) / STD, the teacher's (pixel - mean) / std: a linear function of ours.
        # Nothing is clipped, so that a prediction out of range still has a gradient.
        self._scale = [own / (2 * theirs) for own, theirs in zip(STD, std, strict=True)]
        self._shift = [((1 + own) / 2 - m) / s for own, m, s in zip(MEAN, mean, std, strict=True)]
        self._definition = _hash_of(name, LAYERS, list(mean), list(std), size, _hash_of_model(model))

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        path_or_id: str | os.PathLike[str],
        weight: float = 0.3,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Teacher":
        """A teacher by name, from a folder that transformers wrote or a hub id. Only safetensors weights are read.

        Pixels are normalised as the folder's preprocessor_config.json says; without one, as for the released model.

        Raises TeacherError, in one line, if the teacher is missing, is another kind of model, or transformers is not
        installed.
        """
        kind = _kind(name)
        try:
            folder = hub.resolve(path_or_id)
        except CheckpointError as error:
            raise TeacherError(f"teacher {name}: {error}") from error
        found = _read_json(name, folder / CONFIG).get("model_type")
        if found not in kind.model_types:
            raise TeacherError(
                f"teacher {name}: {folder} is a model of type {found!r}, wanted {' or '.join(kind.model_types)}"
                f" (such as {kind.released})"
            )
        model = _load(name, kind, folder)
        mean, std, size = _preprocessing(name, kind, folder, model.config)
        return cls(name, model, mean, std, size, weight).to(device, dtype)

    @property
    def fingerprint(self) -> str:
        """Changes with everything its features depend on: weights, preprocessing and precision."""
        return _hash_of(self._definition, str(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The precision it runs in."""
        return next(self.model.parameters()).dtype

    def features(self, frames: Tensor) -> Tensor:
        """Features [N, tokens, channels], in the teacher's dtype, of the reconstructor's frames, float [N, 3, S, S].

        Frames of another size than the teacher's are resized (bicubic). tokens: one for each of its patches; channels:
        LAYERS times its hidden size. Autocast does not reach into it. Raises ValueError for another shape.
        """
        _check_frames("frames", frames)
        if not len(frames):  # transformers fails on it
            return self.features(frames.new_zeros(1, *frames.shape[1:]))[:0]
        images = to_model_size(frames.float(), self.size)
        scale, shift = constant((self._scale, self._shift), images.device)[..., None, None]
        # Stored targets must be of the same precision.
        with torch.autocast(images.device.type, enabled=False), exact_convolutions(), of_new_shapes():
            images = (images * scale + shift).to(self.dtype)
            states = self.model(pixel_values=images, output_hidden_states=True).hidden_states
        return torch.cat(states[-LAYERS:], dim=-1)[:, self._dropped :]

    def train(self, mode: bool = True) -> "Teacher":
        """Does nothing: a teacher stays in eval mode, also within a network that is trained."""
        return super().train(False)


class FrameLoss(nn.Module):
    """The weighted sum of l1 and of each teacher's feature loss.

    l1: weight of the mean absolute difference of the frames, over channels and pixels. teachers: each adds its weight
    times the mean squared difference of its features, over tokens and channels.
    """

    def __init__(self, l1: float = 1.0, teachers: Sequence[Teacher] = ()) -> None:
        """Raises ValueError for a weight that is negative or not finite, and for two teachers of the same name."""
        super().__init__()
        self.l1 = _checked_weight("l1", l1)
        self.teachers = nn.ModuleList(teachers)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"teachers {', '.join(self.names)}: each can be given once")

    @classmethod
    def from_config(
        cls,
        loss_type: str,
        loss_weights: str,
        teachers: Mapping[str, str | os.PathLike[str]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "FrameLoss":
        """From the reference's config: such as "l1+dinov2_reg+siglip2" and "1+0.3+0.3".

        teachers: folder or hub id of each teacher that loss_type names.

        Raises ValueError if the two do not fit; TeacherError for a teacher that is named but not given, given but not
        named, or cannot be loaded.
        """
        terms, numbers = str(loss_type).split("+"), str(loss_weights).split("+")
        if len(terms) != len(numbers):
            raise ValueError(f"loss_type {loss_type} and loss_weights {loss_weights} must have as many terms")
        if len(set(terms)) < len(terms):
            raise ValueError(f"loss_type {loss_type} names a term twice")
        weights: dict[str, float] = {}
        for term, number in zip(terms, numbers, strict=True):
            if term != "l1":
                _kind(term)
            try:
                weights[term] = _checked_weight(term, float(number))
            except ValueError:
                raise ValueError(f"loss_weights {loss_weights}: {number!r} is no weight for {term}") from None
        wanted = [term for term in terms if term != "l1"]
        # Check everything before loading, which takes long.
        for name in wanted:
            if name not in teachers:
                raise TeacherError(
                    f"the loss is {loss_type}, and its teacher {name} is not given: give its folder or hub id,"
                    f" as teachers.{name}={_KINDS[name].released}"
                )
        for name in teachers:
            if name not in wanted:
                raise TeacherError(f"the loss is {loss_type}, which has no teacher {name}: leave teachers.{name} out")
        loaded = [Teacher.from_pretrained(name, teachers[name], weights[name], device, dtype) for name in wanted]
        return cls(weights.get("l1", 0.0), loaded)

    @property
    def names(self) -> list[str]:
        """The names of the teachers, in order."""
        return [teacher.name for teacher in self._teachers()]

    @property
    def fingerprint(self) -> str:
        """Changes with everything the error depends on: teachers and weights."""
        return _hash_of(
            "frame loss 1", self.l1, [teacher.weight for teacher in self._teachers()], self.targets_fingerprint
        )

    @property
    def targets_fingerprint(self) -> str:
        """Changes with everything that targets depend on: the teachers and their order, but not the weights."""
        return _hash_of("targets 1", [teacher.fingerprint for teacher in self._teachers()])

    @torch.no_grad()
    def targets(self, frames: Tensor) -> list[Tensor]:
        """Each teacher's features [N, tokens, channels] of original frames, float [N, 3, S, S]; without gradients."""
        return [teacher.features(frames) for teacher in self._teachers()]

    def forward(self, predicted: Tensor, original: Tensor, targets: Sequence[Tensor] | None = None) -> Tensor:
        """Errors, float32 [N], of predicted frames, float [N, 3, S, S]; differentiable in these alone.

        original: the original frames, of the same shape. targets: what `targets` gives for them, in any dtype; None:
        computed.

        Raises ValueError if the shapes do not fit.
        """
        _check_frames("predicted", predicted)
        if original.shape != predicted.shape:
            raise ValueError(f"predicted frames are {list(predicted.shape)}, the originals {list(original.shape)}")
        if targets is None:
            targets = self.targets(original)
        if len(targets) != len(self.teachers):
            raise ValueError(f"{len(targets)} targets for {len(self.teachers)} teachers ({', '.join(self.names)})")
        error = self.l1 * (predicted.float() - original.detach().float()).abs().flatten(1).mean(dim=1)
        return self._with_features(error, predicted, targets)

    def of_features(self, predicted: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """The part of the error that the teachers measure: float32 [N]. Arguments as for `forward`."""
        return self._with_features(predicted.new_zeros(len(predicted), dtype=torch.float32), predicted, targets)

    def _with_features(self, error: Tensor, predicted: Tensor, targets: Sequence[Tensor]) -> Tensor:
        for teacher, target in zip(self._teachers(), targets, strict=True):
            features = teacher.features(predicted)
            if target.shape != features.shape:
                raise ValueError(
                    f"targets of {teacher.name} are {list(target.shape)}, its features {list(features.shape)}"
                )
            error = error + teacher.weight * (features.float() - target.detach().float()).square().mean(dim=(1, 2))
        return error

    def _teachers(self) -> Iterator[Teacher]:
        for teacher in self.teachers:
            assert isinstance(teacher, Teacher)
            yield teacher


class _HasLoss(Protocol):
    """A reconstructor's config, a dataclass."""

    @property
    def loss_type(self) -> str: ...
    @property
    def loss_weights(self) -> str: ...


Config = TypeVar("Config", bound=_HasLoss)
TEACHER_WEIGHT = 0.3
"""Of a teacher's loss beside l1, as in the reference."""


def reweighted(config: Config, teachers: Iterable[str], weights: Mapping[str, float]) -> Config:
    """The config of a reconstructor that goes on with another loss.

    The terms of its loss stay, and teachers that are given but not among them are added. weights: by term; a term
    without one keeps its own, and a new teacher gets TEACHER_WEIGHT; a term of weight 0 is left out.
    Raises ValueError for a loss that cannot be read, and where all weights are 0.
    """
    terms, numbers = config.loss_type.split("+"), config.loss_weights.split("+")
    if len(terms) != len(numbers):
        raise ValueError(f"loss_type {config.loss_type} and loss_weights {config.loss_weights} must have as many terms")
    known = dict(zip(terms, numbers, strict=True))
    for name in ("l1", *teachers):
        known.setdefault(name, str(TEACHER_WEIGHT) if name != "l1" else "0")  # a loss without l1 stays without
    known |= {name: f"{weight:g}" for name, weight in weights.items() if name in known}
    known = {name: number for name, number in known.items() if float(number)}
    if not known:
        raise ValueError("all weights of the loss are 0: give one of them a value")
    return replace(config, loss_type="+".join(known), loss_weights="+".join(known.values()))  # type: ignore[type-var]


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise TeacherError(f"unknown loss {name!r}: the losses are l1, {', '.join(_KINDS)}")
    return _KINDS[name]


def _checked_weight(name: str, weight: float) -> float:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the weight of {name} is {weight}: wanted a number of 0 or more")
    return float(weight)


def _check_frames(what: str, frames: Tensor) -> None:
    if (
        not frames.is_floating_point()
        or frames.dim() != 4
        or frames.shape[1] != 3
        or frames.shape[2] != frames.shape[3]
    ):
        raise ValueError(f"{what} are {frames.dtype} {list(frames.shape)}: wanted floats [N, 3, S, S]")


def _load(name: str, kind: _Kind, folder: Path) -> Any:
    """The transformers model of a folder, float32 on the CPU. Raises TeacherError if a weight is missing."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise TeacherError(
            f"teacher {name} needs transformers ({error}): pip install -e '.[teachers]' in the checkout"
        ) from error
    try:
        with quiet(transformers):
            model, report = getattr(transformers, kind.model_class).from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors fail in many types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise TeacherError(f"teacher {name}: {folder} cannot be loaded: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would use random ones
        raise TeacherError(f"teacher {name}: {folder} lacks {len(missing)} of the model's weights: {missing[0]}, ...")
    if model.config.num_hidden_layers < LAYERS:
        raise TeacherError(f"teacher {name}: {folder} has {model.config.num_hidden_layers} layers, wanted {LAYERS}")
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise TeacherError(f"teacher {name}: {folder} holds weights that are NaN or infinite")
    return model


def _preprocessing(name: str, kind: _Kind, folder: Path, config: Any) -> tuple[list[float], list[float], int]:
    """What a teacher's folder asks for: mean and deviation of pixels in [0, 1], and the side of the images."""
    path = folder / PREPROCESSOR
    found = _read_json(name, path) if path.exists() else {}
    try:
        for key, wanted in (("do_rescale", True), ("do_normalize", True), ("rescale_factor", 1 / 255)):
            if not math.isclose(found.get(key, wanted), wanted, rel_tol=1e-6):
                raise ValueError(f"{key} is {found[key]}, wanted {wanted}")
        mean = [float(value) for value in found.get("image_mean", kind.mean)]
        std = [float(value) for value in found.get("image_std", kind.std)]
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
            raise ValueError(f"image_mean is {mean} and image_std {std}, wanted 3 numbers each")
        # DINOv2 interpolates its positions: it was released for 518 pixels, and its processor makes 224.
        size = int(found.get("crop_size", {"height": 224})["height"]) if name in _OF_ANY_SIZE else config.image_size
        if size % config.patch_size:
            raise ValueError(f"images of {size} pixels are no whole number of patches of {config.patch_size}")
    except (ValueError, TypeError, KeyError) as error:
        raise TeacherError(f"teacher {name}: {path} does not fit: {error}") from error
    return mean, std, size


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TeacherError(f"teacher {name}: {path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise TeacherError(f"teacher {name}: {path} is no JSON object")
    return document


def _hash_of_model(model: nn.Module) -> str:
    """A hash of the named weights, and of the settings that features depend on."""
    config: Any = model.config
    hashed = hashlib.sha256()
    settings = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size")
    hashed.update(json.dumps([str(getattr(config, setting)) for setting in settings]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(json.dumps([name, list(tensor.shape)]).encode())
        hashed.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return hashed.hexdigest()


def _hash_of(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
