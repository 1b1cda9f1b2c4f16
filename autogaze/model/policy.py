"""The AutoGaze policy (docs/method.md): gaze at clips, score a gaze, gaze at frames as they come.

policy = AutoGaze.from_pretrained("nvidia/AutoGaze")
gaze = policy.gaze(frames, max_ratio=0.75, loss_threshold=0.7)      # frames: uint8 [B, 16, 224, 224, 3]
scores = policy.score(frames, gaze)                                 # log-probabilities, with gradients
stream = policy.stream(loss_threshold=0.7)
for frame in camera:
    gaze = stream.push(frame)
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autogaze import hub
from autogaze.device import usable_device
from autogaze.gaze import Gaze
from autogaze.images import as_model_input, check_frames, preprocess
from autogaze.model import adaptation, checkpoint
from autogaze.model.cache import Cache, PaddedCache, RaggedCache
from autogaze.model.config import AutoGazeConfig
from autogaze.model.cuda_graphs import Kept, KeptSteps
from autogaze.model.decoder import Decoder
from autogaze.model.encoder import Connector, Encoder
from autogaze.model.generation import FrameGaze, Generation
from autogaze.model.limits import frame_caps, frame_slots, frame_thresholds
from autogaze.model.proposals import Proposals
from autogaze.model.sampling import Sampling, mixed
from autogaze.model.scoring import Scores, lay_out_tokens, score
from autogaze.model.wide import Size, Wide
from autogaze.patches import PatchVocabulary

_ENCODED_AT_ONCE = 64  # frames, of 0.6 MB each as floats, so that a wide batch of clips need not fit in memory
_ENCODED_WIDE = 1024  # on a GPU, with some 2 GB of memory


class Encoded(NamedTuple):
    """Encoded clips, to gaze at or score many times.

    tokens: vision tokens [B, T, P, hidden], on the policy's device.
    """

    tokens: Tensor

    def repeat(self, times: int) -> Encoded:
        """Each clip `times` times in a row: [B * times, T, P, hidden]."""
        return Encoded(self.tokens.repeat_interleave(times, dim=0))


class Rollout(NamedTuple):
    """A sampled gaze with its log-probabilities. Both tensors are in the layout of `gaze.padded()`.

    drawn: int64 [B, N], what was drawn for each slot, even if the threshold then left the slot unused; the end-of-frame
        id where nothing was drawn.
    log_probs: float32 [B, N], of what was drawn, in the distribution it was drawn from: with temperature and top-k, and
        without the patches that the frame already had.
    """

    gaze: Gaze
    drawn: Tensor
    log_probs: Tensor


class GazingModel(nn.Module):
    """The network's parts, under the reference's names."""

    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        self.vision_model = Encoder(config)
        self.connector = Connector(config)
        self.gaze_decoder = Decoder(config)


class AutoGaze(nn.Module):
    """The policy, with random weights; `from_pretrained` reads a checkpoint.

    positions: "reference" or "consistent", the config's: how decode steps are placed (docs/method.md, section
        'Positions'). With reference positions each row gets the gaze that the reference gives it as a batch of one,
        whatever the rest of the batch.
    cuda_graphs: whether gazing runs as CUDA graphs. None: if the device is a GPU.
    """

    def __init__(self, config: AutoGazeConfig, cuda_graphs: bool | None = None) -> None:
        super().__init__()
        self.config = config
        self.wants_graphs = cuda_graphs
        self.gazing_model = GazingModel(config)
        self._graphed = KeptSteps()
        self._kept: Kept[Wide] = Kept()
        self._initialise()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        positions: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cuda_graphs: bool | None = None,
    ) -> AutoGaze:
        """A checkpoint in the reference's format: a folder, or a hub id such as "nvidia/AutoGaze".

        positions: None: those the checkpoint was trained for, by its config ("reference", if that does not say).
        dtype: float32 or bfloat16, of weights and arithmetic. device: cpu, cuda or mps; none is chosen silently.

        Raises CheckpointError (a ValueError), in one line, if the checkpoint is missing, damaged, or of another kind of
        network. Raises ValueError for another dtype, a device this machine lacks, and CUDA graphs without a GPU.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype is {dtype}: wanted torch.float32 or torch.bfloat16")
        device = usable_device(device)
        if cuda_graphs and device.type != "cuda":
            raise ValueError(f"cuda_graphs=True on {device}: CUDA graphs need device='cuda'")
        folder = hub.resolve(path_or_id)
        config = checkpoint.read_config(folder)
        if positions is not None:
            config = replace(config, positions=positions)
        with torch.device("meta"):
            policy = cls(config, cuda_graphs)
        shapes = {name: tensor.shape for name, tensor in policy.state_dict().items()}
        policy.load_state_dict(checkpoint.read_weights(folder, shapes), assign=True)
        return policy.requires_grad_().to(device, dtype).eval()

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that the reference, and `from_pretrained`, read. Weights are written as float32."""
        checkpoint.write(path, self.config, self._weights())

    @property
    def fingerprint(self) -> str:
        """Changes with the weights, and with everything in the config that results depend on."""
        return checkpoint.fingerprint(self.config, self._weights())

    @property
    def vocabulary(self) -> PatchVocabulary:
        """The patches it chooses from."""
        return self.config.vocabulary

    @property
    def positions(self) -> str:
        """How decode steps are placed; see the class."""
        return self.config.positions

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.gazing_model.connector.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.gazing_model.connector.pos_embed.dtype

    @property
    def cuda_graphs(self) -> bool:
        """Whether gazing runs as CUDA graphs."""
        return self.device.type == "cuda" and self.wants_graphs is not False

    @property
    def wide(self) -> bool:
        """Whether it gazes at all rows at once (autogaze/model/wide.py): on a GPU. CPUs are faster row by row."""
        return self.device.type == "cuda"

    # -- gazing --------------------------------------------------------------------------------------------------

    def gaze(
        self,
        frames: Tensor | np.ndarray,
        max_ratio: float | Sequence[float] | None = None,
        loss_threshold: Any = None,
        sample: Sampling | None = None,
        vocabulary: PatchVocabulary | None = None,
    ) -> Gaze:
        """Gaze at clips: the patches of each frame, in order, and the loss predicted after each. On the CPU.

        frames: uint8 [B, T, H, W, 3] of any size, preprocessed here as in the reference (shortest edge to 224, then
            resized to a square), or preprocessed floats [B, T, 3, H, W].
        max_ratio: the largest share of a frame's patches, in (0, 1]: a number, or one for each frame.
        loss_threshold: a frame ends when its predicted loss is at or under this, in the units the checkpoint was
            trained with: a number, one for each frame [T], or one for each row (and frame) [B, 1] or [B, T].
        If only one of the two is given, it is the only limit; if none, the checkpoint's defaults hold (as released,
        0.75 and 0.7).
        sample: None: always the best patch.
        vocabulary: of another vision model (docs/method.md, section 'Other sizes'). Frames must then be square and of
            its size (uint8 frames are resized to it); ids ascend, and there are no losses.

        A row's gaze does not depend on the other rows. Raises ValueError, in one line, for arguments that do not fit.
        """
        if vocabulary is not None and adaptation.needs_adaptation(self.vocabulary, vocabulary):
            return self._adapted(frames, max_ratio, loss_threshold, sample, vocabulary)
        clips = check_frames(frames)
        caps, thresholds = self._limits(max_ratio, loss_threshold, *clips.shape[:2])
        return self._gaze(clips, caps, thresholds, sample)

    def stream(
        self,
        max_ratio: float | None = None,
        loss_threshold: Any = None,
        sample: Sampling | None = None,
        batch: int = 1,
    ) -> Stream:
        """Gaze at frames as they come, `batch` clips at a time. Limits as in `gaze`, the same for every frame."""
        return Stream(self, max_ratio, loss_threshold, sample, batch)

    def rollout(
        self,
        frames: Tensor | np.ndarray | Encoded,
        sample: Sampling,
        max_ratio: float | Sequence[float] | None = None,
        loss_threshold: Any = None,
        slots: Sequence[int] | Tensor | None = None,
    ) -> Rollout:
        """Sample a gaze as `gaze` does, with its log-probabilities.

        slots: the most patches of each frame, instead of max_ratio: T numbers, or int64 [B, T], one for each row and
        frame. There 0 stands for frames after a row's last, which is not gazed at any further.
        Raises ValueError, in one line, for arguments that do not fit.
        """
        with self._own_precision():
            encoded = self.encode(frames)
        rows, length = encoded.tokens.shape[:2]
        caps: Sequence[int | list[int]]
        if slots is None:
            caps, thresholds = self._limits(max_ratio, loss_threshold, rows, length)
        else:
            if max_ratio is not None:
                raise ValueError("slots: they say it all, so give no max_ratio")
            caps = frame_slots(slots, rows, length, self.vocabulary)
            thresholds = frame_thresholds(loss_threshold, rows, length)
        with self._own_precision():
            gazed = self._gaze_frames(encoded, caps, thresholds, sample)
        drawn, log_probs = [], []
        for frame in gazed:
            assert frame.drawn is not None and frame.log_probs is not None
            width = max(frame.slots)
            drawn.append(frame.drawn[:, :width].clone())
            log_probs.append(frame.log_probs[:, :width].clone())
        return Rollout(as_gaze(gazed, self.vocabulary), torch.cat(drawn, dim=1), torch.cat(log_probs, dim=1))

    def score(
        self,
        frames: Tensor | np.ndarray | Encoded,
        gaze: Gaze,
        sample: Sampling | None = None,
        drawn: Tensor | None = None,
    ) -> Scores:
        """Log-probabilities and loss predictions of a gaze, with gradients if they are enabled.

        See docs/method.md, section 'Teacher forcing'.

        sample: how the gaze was sampled (seeds do not matter). Log-probabilities are then those of a `Rollout`. None:
            those over all ids at temperature 1, as in the reference.
        drawn: of the Rollout. None: the gaze's own patches, which are the same unless a threshold left slots unused.

        Raises ValueError if the gaze is not of these frames.
        """
        encoded = self.encode(frames)
        if tuple(encoded.tokens.shape[:2]) != tuple(gaze.lengths.shape):
            clips, length = encoded.tokens.shape[:2]
            raise ValueError(
                f"the frames are {clips} clips of {length} frames, the gaze is of {gaze.clips} of {gaze.num_frames}"
            )
        if gaze.vocabulary != self.vocabulary:
            raise ValueError(f"the gaze is of {gaze.vocabulary}, the policy of {self.vocabulary}")
        return score(self.gazing_model.gaze_decoder, encoded.tokens, gaze, sample, drawn)

    def lay_out_tokens(self, gaze: Gaze) -> None:
        """Build ahead what `score` of this very gaze needs besides the frames, in another thread say."""
        lay_out_tokens(gaze, self.config.num_vision_tokens, self.config.block_size, self.device)

    def propose(self, rows: int, caps: Sequence[int]) -> Proposals:
        """Begin to propose patches for `rows` clips, frame by frame. caps: most patches that are kept of each frame."""
        room = len(caps) * (self.config.num_vision_tokens + max(caps)) + self.config.block_size
        decoder = self.gazing_model.gaze_decoder
        with torch.inference_mode():
            if not self.cuda_graphs:
                return Proposals(decoder, self._cache(rows, room), self.positions, None)
            graphs = self._graphed.steps(decoder, rows, room)
            return Proposals(decoder, graphs.cache, self.positions, None, graphs)

    def encode(self, frames: Tensor | np.ndarray | Encoded) -> Encoded:
        """Encode clips once, for any number of calls that take `frames`. With gradients if they are enabled."""
        return frames if isinstance(frames, Encoded) else Encoded(self._encode(check_frames(frames)))

    # -- parts ---------------------------------------------------------------------------------------------------

    def _gaze(
        self,
        clips: Tensor,
        caps: list[int],
        thresholds: Tensor | None,
        sample: Sampling | None,
        batches: list[int] | None = None,
    ) -> Gaze:
        with torch.inference_mode(), self._own_precision():
            gazed = self._gaze_frames(self.encode(clips), caps, thresholds, sample, batches)
        # Outside inference mode, so that users get ordinary tensors.
        return as_gaze(gazed, self.vocabulary)

    @torch.inference_mode()
    def _gaze_frames(
        self,
        encoded: Encoded,
        caps: Sequence[int | list[int]],
        thresholds: Tensor | None,
        sample: Sampling | None,
        batches: list[int] | None = None,
    ) -> list[FrameGaze]:
        vision = encoded.tokens
        most = [cap if isinstance(cap, int) else max(1, *cap) for cap in caps]
        room = len(caps) * (self.config.num_vision_tokens + max(most)) + self.config.block_size
        if self.wide:
            wide = self._wide(Size(len(vision), len(caps), max(most), room), sample, batches)
            # Copies that do not wait: what is to come is on its way before the first frame.
            ends = None if thresholds is None else thresholds.T.to(self.device, non_blocking=True)
            rows = [cap if isinstance(cap, list) else [cap] * len(vision) for cap in caps]
            limits = torch.tensor(rows).to(self.device, non_blocking=True)
            for t, slots in enumerate(most):
                wide.frame(vision[:, t], slots, limits[t], None if ends is None else ends[t])
            return wide.results()
        cache, decoder = self._cache(len(vision), room), self.gazing_model.gaze_decoder
        generation = Generation(decoder, cache, self.positions, sample, None, batches)
        gazed: list[FrameGaze] = []
        for t, cap in enumerate(caps):
            threshold = None if thresholds is None else thresholds[:, t]
            gazed.append(generation.frame(vision[:, t], cap, threshold, gazed[-1] if gazed else None))
        generation.settle(gazed[-1])
        return gazed

    def _adapted(
        self,
        frames: Tensor | np.ndarray,
        max_ratio: float | Sequence[float] | None,
        loss_threshold: Any,
        sample: Sampling | None,
        wanted: PatchVocabulary,
    ) -> Gaze:
        own = self.vocabulary
        adaptation.require_adaptable(own, wanted)
        clips = check_frames(frames)
        images = preprocess(clips, wanted.frame_size, self.device) if clips.dtype == torch.uint8 else clips
        tiles = adaptation.cut(images, own, wanted)
        rows, each = len(clips), len(tiles) // len(clips)
        caps, thresholds = self._limits(max_ratio, loss_threshold, rows, clips.shape[1])
        if sample is not None:
            seeds = mixed(sample.row_seeds(rows))[:, None] + torch.arange(each)
            sample = replace(sample, seeds=seeds.flatten().tolist())
        thresholds = None if thresholds is None else thresholds.repeat_interleave(each, dim=0)
        batches = [row // each for row in range(len(tiles))]  # the reference gazes at the tiles of a clip as one batch
        gaze = self._gaze(tiles, caps, thresholds, sample, batches)
        return adaptation.join(gaze, own, wanted)

    def _limits(
        self, max_ratio: float | Sequence[float] | None, loss_threshold: Any, rows: int, frames: int
    ) -> tuple[list[int], Tensor | None]:
        """Slots of each frame, and float32 [rows, frames] of thresholds or None."""
        if max_ratio is None and loss_threshold is None:
            max_ratio, loss_threshold = self.config.max_ratio, self.config.loss_threshold
            if max_ratio is None and loss_threshold is None:
                raise ValueError("this checkpoint names no default limits: give max_ratio=, loss_threshold= or both")
        return frame_caps(max_ratio, frames, self.vocabulary), frame_thresholds(loss_threshold, rows, frames)

    def _encode(self, clips: Tensor) -> Tensor:
        """Vision tokens [B, T, P, hidden] of clips as users give them."""
        at_once = max(1, (_ENCODED_WIDE if self.wide else _ENCODED_AT_ONCE) // clips.shape[1])
        parts = []
        for part in clips.split(at_once):
            images = as_model_input(part, self.config.input_size, self.device, self.dtype)
            encoder = self.gazing_model.vision_model
            tokens = encoder.whole_clips(images) if self.device.type == "cpu" and not self.wide else encoder(images)[0]
            parts.append(self.gazing_model.connector(tokens))
        return torch.cat(parts)

    def _wide(self, size: Size, sample: Sampling | None, batches: list[int] | None, keep: bool = True) -> Wide:
        """The beginning of `size.rows` clips, wide. keep: whether its graphs, if there are any, outlive it."""
        graphs = self.cuda_graphs and keep

        def make() -> Wide:
            return Wide(self.config, size, self.positions, self.device, self.dtype, graphs)

        if graphs:
            top_k = None if sample is None else sample.top_k or 0
            key = size.rows, top_k, batches is None, self.positions, self.device, self.dtype
            wide = self._kept.take(key, lambda kept: kept.size.holds(size), make)
        else:
            wide = make()
        wide.begin(self.gazing_model.gaze_decoder, sample, batches)
        return wide

    def _own_precision(self) -> torch.autocast:
        """Switches off the caller's autocast: the cache is in the precision of the weights."""
        return torch.autocast(self.device.type, enabled=False)

    def _cache(self, rows: int, room: int) -> Cache:
        kind = RaggedCache if self.device.type == "cpu" else PaddedCache
        return kind(self.config, rows, room, self.device, self.dtype)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().float().cpu() for name, tensor in self.state_dict().items()}

    def _initialise(self) -> None:
        """Fresh weights: deviation 0.02, as in Hugging Face's Llama; convolutions and norms as PyTorch makes them."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, Connector):
                nn.init.normal_(module.pos_embed, std=0.02)


class Stream:
    """Gazes at each frame as it comes. Made by `AutoGaze.stream`."""

    def __init__(
        self, policy: AutoGaze, max_ratio: float | None, loss_threshold: Any, sample: Sampling | None, batch: int
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch={batch}: a stream has at least 1 clip")
        self.policy, self.batch = policy, batch
        (self.cap,), self.thresholds = policy._limits(max_ratio, loss_threshold, batch, 1)
        config = policy.config
        room = config.max_num_frames * (config.num_vision_tokens + self.cap) + config.block_size
        self._generation: Generation | Wide
        if policy.wide:
            with torch.inference_mode():
                self._generation = policy._wide(Size(batch, 1, self.cap, room), sample, None, keep=False)
        else:
            decoder = policy.gazing_model.gaze_decoder
            self._generation = Generation(decoder, policy._cache(batch, room), policy.positions, sample)
        self._past: list[Tensor] | None = None

    def push(self, frame: Tensor | np.ndarray) -> Gaze:
        """The gaze [B, 1] at the next frame of each clip, the same that `AutoGaze.gaze` gives it in the whole clip.

        frame: uint8 [B, H, W, 3] or floats [B, 3, H, W]; a stream of one clip also takes them without B. Raises
        ValueError for another shape or dtype.
        """
        frames = frame[None] if frame.ndim == 3 and self.batch == 1 else frame
        if frames.ndim != 4 or len(frames) != self.batch:
            raise ValueError(
                f"a frame of shape {list(frame.shape)}: this stream has {self.batch} clips and wants uint8"
                f" [{self.batch}, H, W, 3] or floats [{self.batch}, 3, H, W]"
            )
        policy = self.policy
        with torch.inference_mode(), policy._own_precision():
            images = as_model_input(
                check_frames(frames[:, None]), policy.config.input_size, policy.device, policy.dtype
            )
            tokens, past = policy.gazing_model.vision_model(images, self._past)
            vision = policy.gazing_model.connector(tokens)[:, 0]
            threshold = None if self.thresholds is None else self.thresholds[:, 0]
            gazed = self._gazed(vision, threshold)
        self._past = past
        return as_gaze([gazed], policy.vocabulary)

    def _gazed(self, vision: Tensor, threshold: Tensor | None) -> FrameGaze:
        generation = self._generation
        if isinstance(generation, Wide):
            generation.load(self.policy.gazing_model.gaze_decoder)
            cap = torch.full((self.batch,), self.cap, device=vision.device)
            threshold = None if threshold is None else threshold.to(vision.device, non_blocking=True)
            generation.frame(vision, self.cap, cap, threshold)
            return generation.results()[0]
        if generation.narrow is not None:
            generation.narrow.load()
        gazed = generation.frame(vision, self.cap, threshold, None)
        generation.settle(gazed)
        return gazed

    def fork(self) -> Stream:
        """A copy of the stream at this point, which goes on by itself. Costs a copy of the cache."""
        other = copy.copy(self)
        with torch.inference_mode():
            other._generation = self._generation.fork()
        return other


def as_gaze(frames: Sequence[FrameGaze], vocabulary: PatchVocabulary) -> Gaze:
    """The gazes of consecutive frames as one gaze."""
    ids = torch.cat([frame.ids for frame in frames], dim=1)
    used = ids != vocabulary.eos  # row by row, and a row's frames one after another
    places = torch.cat([torch.arange(frame.ids.shape[1]) for frame in frames])
    counts = torch.stack([(frame.ids != vocabulary.eos).sum(dim=1) for frame in frames], dim=1)
    slots = torch.tensor([frame.slots for frame in frames]).T.contiguous()
    holes = not torch.equal(counts, slots)
    return Gaze(
        tokens=ids[used],
        lengths=counts,
        losses=torch.cat([frame.before[:, 1:] for frame in frames], dim=1)[used],
        initial=torch.stack([frame.before[:, 0] for frame in frames], dim=1),
        vocabulary=vocabulary,
        places=places.expand(len(ids), -1)[used] if holes else None,
        slots=slots if holes else None,
    )
