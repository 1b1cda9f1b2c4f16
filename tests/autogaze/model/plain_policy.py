"""The policy written straight from its definition, to compare with: one clip, no cache, no shared code, float32.

Nothing is remembered between steps. A clip is one list of slots (vision tokens and gaze tokens, end-of-frame tokens in
unused places included); at every step the whole list is encoded again, each slot at an explicit position, under an
explicit boolean mask. The network is read from a checkpoint folder of the reference (config.json, model.safetensors).
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def preprocessed(frames):
    """uint8 [..., H, W, 3] -> float [..., 3, H, W]: to [-1, 1], then ImageNet's mean and deviation on that range."""
    return (((frames.to(torch.float32) / 127.5 - 1) - MEAN) / STD).movedim(-1, -3)


@dataclass
class PlainGaze:
    """The gaze of one clip. `slots[t]` are the ids of frame t as emitted, end-of-frame ids in unused places.

    `before[t][j]`: predicted loss of the frame before slot j, whole blocks of them. `margin`: the narrowest decision on
    the way, the least gap between the best and the second id and between a prediction and its threshold.
    """

    slots: list[list[int]] = field(default_factory=list)
    before: list[list[float]] = field(default_factory=list)
    margin: float = math.inf


class PlainPolicy:
    def __init__(self, folder, weights=None):
        config = json.loads((Path(folder) / "config.json").read_text())
        weights = load_file(Path(folder) / "model.safetensors") if weights is None else weights
        self.weights = {name.removeprefix("gazing_model."): tensor for name, tensor in weights.items()}
        decoder = config["gaze_model_config"]["gaze_decoder_config"]
        self.scales = [int(scale) for scale in config["scales"].split("+")]
        self.patch = config["gaze_model_config"]["vision_model_config"]["kernel_size"]
        self.grids = [scale // self.patch for scale in self.scales]
        self.size = sum(grid * grid for grid in self.grids)
        self.eos = self.size
        self.block = decoder["num_multi_token_pred"]
        self.layers, self.heads = decoder["num_hidden_layers"], decoder["num_attention_heads"]
        self.eps, self.rope_theta, self.rope = (decoder[k] for k in ("rms_norm_eps", "rope_theta", "rope_scaling"))

    # -- the network: docs/method.md, section 'Network' ----------------------------------------------------------

    def encode(self, frames):
        """float [T, 3, H, W] -> vision tokens [T, S, D]. Frame t sees frames t-2..t, zeros before the first."""
        w = self.weights
        frames = F.interpolate(frames, (self.scales[-1],) * 2, mode="bicubic", align_corners=False)
        x = frames.transpose(0, 1)[None]
        stem = "vision_model.temporal_conv"
        x = F.conv3d(x, w[f"{stem}.weight"], w[f"{stem}.bias"], stride=(1, self.patch, self.patch))
        norm = w["vision_model.norm.weight"], w["vision_model.norm.bias"]
        x = F.layer_norm(x.movedim(1, -1), norm[0].shape, *norm, 1e-5).movedim(-1, 1)
        conv = "vision_model.blocks.0.conv3d"
        x = F.relu(F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), w[f"{conv}.weight"], w[f"{conv}.bias"]))
        x = F.conv3d(x, w["vision_model.out_proj.weight"], w["vision_model.out_proj.bias"])
        return x[0].permute(1, 2, 3, 0).flatten(1, 2) + w["connector.pos_embed"]

    def frequencies(self):
        """Rotary frequencies, the slow ones slowed further ("llama3" scaling)."""
        width = self.weights["gaze_decoder.model.norm.weight"].numel() // self.heads
        plain = self.rope_theta ** (-torch.arange(0, width, 2).float() / width)
        scaling = self.rope
        turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * plain + (1 - kept) * plain / scaling["factor"]

    def decode(self, embeds, positions, allowed):
        """Llama over [N, D] slots at `positions` [N]; slot i sees slot j <= i if `allowed` [N, N]. Returns [N, D]."""
        w, n = self.weights, len(embeds)
        angles = positions[:, None].float() * self.frequencies()
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        allowed = allowed.tril()

        def norm(x, weight):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

        def rotate(x):
            first, second = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-second, first], dim=-1) * sin

        x = embeds
        for layer in range(self.layers):
            name = f"gaze_decoder.model.layers.{layer}"
            y = norm(x, w[f"{name}.input_layernorm.weight"])
            q, k, v = (
                (y @ w[f"{name}.self_attn.{part}_proj.weight"].T).view(n, self.heads, -1).transpose(0, 1)
                for part in "qkv"
            )
            weight = rotate(q) @ rotate(k).transpose(1, 2) / math.sqrt(q.shape[-1])
            y = weight.masked_fill(~allowed, -math.inf).softmax(-1) @ v
            x = x + y.transpose(0, 1).reshape(n, -1) @ w[f"{name}.self_attn.o_proj.weight"].T
            y = norm(x, w[f"{name}.post_attention_layernorm.weight"])
            gate, up = (y @ w[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ w[f"{name}.mlp.down_proj.weight"].T
        return norm(x, w["gaze_decoder.model.norm.weight"])

    def head_scores(self, hidden):
        """hidden [..., D] -> scores [..., K, V + 1] of the next K tokens, and loss predictions [..., K]."""
        scores = hidden @ self.weights["gaze_decoder.lm_head.weight"].T
        predictions = hidden @ self.weights["gaze_decoder.task_loss_prediction_head.weight"].T
        return scores.unflatten(-1, (self.block, self.size + 1)), predictions

    def embed(self, ids):
        return self.weights["gaze_decoder.model.embed_tokens.weight"][torch.tensor(ids, dtype=torch.int64)]

    # -- generation: docs/method.md, sections 'Generation' and 'Positions' ---------------------------------------

    def next_heads(self, vision, done, emitted, consistent):
        """Heads at the end of [frames done][vision of this frame][blocks emitted in this frame].

        done: the slots of earlier frames; emitted: those of this one, whole blocks, none of them end-of-frame.
        A visible slot's true place is the number of visible slots before it; an end-of-frame slot takes no place and is
        seen by none. The reference keeps to that for vision tokens and for the last block of a finished frame. All
        other blocks carry the places of the last K vision tokens, over and over (its stale positions), and see each
        other whatever they hold.
        """
        ids, stale = [], []  # per slot: a gaze id or None for vision; the frame in which it was encoded late or None
        for t, slots in enumerate([*done, emitted]):
            last = len(slots) if t == len(done) else (len(slots) - 1) // self.block * self.block
            ids += [None] * vision.shape[1] + slots
            stale += [-1] * vision.shape[1] + [t if j < last and not consistent else -1 for j in range(len(slots))]
        visible, stale = torch.tensor([id != self.eos for id in ids]), torch.tensor(stale)
        places = visible.cumsum(0) - 1
        start = 0
        for slots in [*done, emitted]:
            start += vision.shape[1]
            for j in range(start, start + len(slots)):
                if stale[j] >= 0:
                    places[j] = places[start - self.block + (j - start) % self.block]
            start += len(slots)
        allowed = visible[None, :] | ((stale[:, None] == stale[None, :]) & (stale[:, None] >= 0))
        parts = [part for t, slots in enumerate([*done, emitted]) for part in (vision[t], self.embed(slots))]
        return self.head_scores(self.decode(torch.cat(parts), places, allowed)[-1])

    def frame(self, gaze, vision, cap, threshold, consistent):
        """Adds one frame's slots to the gaze of one clip, greedily."""
        emitted, before, finished = [], [], False
        while len(emitted) < cap and not finished:
            scores, predictions = self.next_heads(vision, gaze.slots, emitted, consistent)
            block = []
            for head in scores[: cap - len(emitted)]:
                head = head.clone()
                head[[self.eos, *emitted, *block]] = -math.inf  # no id twice in a frame, no end of frame
                (best, second), ranked = head.topk(2)
                gaze.margin = min(gaze.margin, float(best - second))
                block.append(int(ranked[0]))
            if threshold is not None:
                gaps = predictions[: len(block)] - torch.tensor(threshold, dtype=torch.float32)
                hits = gaps <= 0
                if not emitted:  # each frame keeps at least its first token
                    hits[0], gaps[0] = False, math.inf
                gaze.margin = min(gaze.margin, float(gaps.abs().min()))
                block = [self.eos if hit else id for id, hit in zip(block, hits.tolist(), strict=True)]
                finished = bool(hits.any())
            emitted += block
            before += predictions.tolist()
        gaze.slots.append(emitted)
        gaze.before.append(before)

    def gaze(self, frames, caps, thresholds=None, consistent=False):
        """Greedy gaze of one clip, float [T, 3, H, W]; caps [T] tokens, thresholds [T] losses or None."""
        return self.together([frames], caps, None if thresholds is None else [thresholds], consistent)[0]

    def together(self, clips, caps, thresholds=None, consistent=False):
        """Several clips as one batch of the reference, where a frame has the slots of the slowest clip.

        With stale positions a clip that finished early is so changed by its mates: what was its last block is not
        the frame's last.
        """
        visions, gazes = [self.encode(frames) for frames in clips], [PlainGaze() for _ in clips]
        for t, cap in enumerate(caps):
            for b, gaze in enumerate(gazes):
                self.frame(gaze, visions[b], cap, None if thresholds is None else thresholds[b][t], consistent)
            slots = max(len(gaze.slots[t]) for gaze in gazes)
            for gaze in gazes:
                gaze.slots[t] += [self.eos] * (slots - len(gaze.slots[t]))
        return gazes

    # -- teacher forcing: docs/method.md, section 'Teacher forcing' ----------------------------------------------

    def score(self, frames, slots):
        """log p of each slot's id (of the end of the frame at unused slots), and the loss predicted after it: [N] each.

        Slot j of a frame belongs to head o = j mod K at the slot o + 1 before it.
        """
        vision = self.encode(frames)
        embeds, ids, sources, places, heads = [], [], [], [], []
        for t, frame in enumerate(slots):
            embeds += [vision[t], self.embed(frame)]
            first = len(ids) + vision.shape[1]
            ids += [None] * vision.shape[1] + frame
            sources += [first + j - j % self.block - 1 for j in range(len(frame))]
            places += [first + j for j in range(len(frame))]
            heads += [j % self.block for j in range(len(frame))]
        visible = torch.tensor([id != self.eos for id in ids])
        hidden = self.decode(torch.cat(embeds), visible.cumsum(0) - 1, visible.expand(len(ids), -1))
        scores, predictions = self.head_scores(hidden)
        log_probs, after = [], []
        for source, place, head in zip(sources, places, heads, strict=True):
            log_probs.append(torch.log(scores[source, head].softmax(-1)[ids[place]] + 1e-8))
            after.append(predictions[place, 0] if head == self.block - 1 else predictions[source, head + 1])
        return torch.stack(log_probs), torch.stack(after)

    # -- other scales and patch sizes: docs/method.md, section 'Other sizes' -------------------------------------

    def adapted(self, frames, scales, patch, cap, threshold, consistent=False, together=True):
        """Gaze at another vocabulary: the ids of each frame, ascending. frames float [T, 3, H, H], H = scales[-1].

        together: the tiles are one batch, as in the reference; else each is gazed alone.
        """
        grids, side, tile = [scale // patch for scale in scales], self.grids[-1], self.grids[-1] * patch
        tiles = math.ceil(grids[-1] / side)
        spare = tiles * tile - frames.shape[-1]
        frames = F.pad(frames, (0, spare, 0, spare))
        corners = [(row, col) for row in range(tiles) for col in range(tiles)]
        parts = [frames[..., y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y, x in corners]
        caps, thresholds = [cap] * len(frames), [[threshold] * len(frames)]
        if together:
            gazes = self.together(parts, caps, thresholds * len(parts), consistent)
        else:
            gazes = [self.gaze(part, caps, thresholds[0], consistent) for part in parts]
        found = [[] for _ in frames]
        for (row, col), gaze in zip(corners, gazes, strict=True):
            for t, slots in enumerate(gaze.slots):
                for id in slots:
                    if id == self.eos:
                        continue
                    scale = max(i for i in range(len(grids)) if self.offset(self.grids, i) <= id)
                    y, x = divmod(id - self.offset(self.grids, scale), self.grids[scale])
                    y, x = y + row * self.grids[scale], x + col * self.grids[scale]
                    if y < grids[scale] and x < grids[scale]:  # else in the padding
                        found[t].append(self.offset(grids, scale) + y * grids[scale] + x)
        return [sorted(ids) for ids in found], min(gaze.margin for gaze in gazes)

    @staticmethod
    def offset(grids, scale):
        """First id of a scale."""
        return sum(grid * grid for grid in grids[:scale])
