"""The learned reconstructor written straight from its definition, to compare with: one mask, no cache.

The definition is docs/method.md, section 'VideoMAE reconstructor'.

A batch of padded gaze goes through the network at once, under an explicit mask [B, 1, N, N]. The weights are a state
dict of the reference. Slow, and easy to check line by line.
"""

import torch
import torch.nn.functional as F

GRIDS = [2, 4, 7, 14]
SIZE = 265


class PlainVideoMAE:
    def __init__(self, weights, heads=4, decoder_heads=4):
        self.w, self.heads, self.decoder_heads = weights, heads, decoder_heads

    def __call__(self, video, padded, at):
        """Normalised clips [B, T, 3, S, S], gaze as Gaze.padded lays it out -> frames `at`: [B, F, 3, S, S]."""
        w, (clips, frames) = self.w, video.shape[:2]
        real = ~padded["if_padded_gazing"]
        ids = torch.where(real, padded["gazing_pos"], 0)
        frame = torch.repeat_interleave(torch.arange(frames), padded["num_gazing_each_frame"])
        pos = w["vit.embeddings.position_embeddings"]
        x = pick(self.tokens(video), ids)
        cls = w["vit.embeddings.cls_token"] + pos[:, :1]
        x = torch.cat([cls.expand(clips, -1, -1), x], 1)
        x = self.norm(self.layers("vit.encoder.layer", x, self.heads, mask(frame, real)), "vit.layernorm")
        x = self.linear(x, "decoder.decoder_embed")

        slots = w["decoder.mask_token"].expand(clips, frames * SIZE, -1).clone()
        for b in range(clips):
            slots[b, ids[b, real[b]]] = x[b, 1:][real[b]]
        slots = (slots.unflatten(1, (frames, SIZE)) + self.slot_positions(frames)).flatten(1, 2)
        kept, kept_real, kept_frame = [], [], []
        for t in range(frames):
            whole = torch.arange(t * SIZE, (t + 1) * SIZE).expand(clips, -1)
            kept.append(whole if t in at else ids[:, frame == t])
            kept_real.append(torch.ones_like(whole, dtype=torch.bool) if t in at else real[:, frame == t])
            kept_frame += [t] * kept[-1].shape[1]
        frame = torch.tensor(kept_frame)
        cls = x[:, :1] + w["decoder.decoder_pos_embed"][:, :1]
        x = torch.cat([cls, pick(slots, torch.cat(kept, 1))], 1)
        x = self.layers("decoder.decoder_layers", x, self.decoder_heads, mask(frame, torch.cat(kept_real, 1)))
        x = self.linear(self.norm(x, "decoder.decoder_norm"), "decoder.decoder_pred")[:, 1:]
        rebuilt = [x[:, frame == t][:, -(GRIDS[-1] ** 2) :].view(clips, 14, 14, 16, 16, 3) for t in at]
        return torch.stack([part.permute(0, 5, 1, 3, 2, 4).reshape(clips, 3, 224, 224) for part in rebuilt], 1)

    def tokens(self, video):
        """All patches of all frames, embedded: [B, T * SIZE, hidden]."""
        w, (clips, frames) = self.w, video.shape[:2]
        pos, projection = w["vit.embeddings.position_embeddings"], "vit.embeddings.patch_embeddings.projection"
        parts = []
        for i, grid in enumerate(GRIDS):
            x = F.interpolate(video.flatten(0, 1), size=(16 * grid,) * 2, mode="bicubic", align_corners=False)
            x = F.conv2d(x, w[f"{projection}.weight"], w[f"{projection}.bias"], stride=16).flatten(2).transpose(1, 2)
            place = pos[:, 1:].view(1, 14, 14, -1).permute(0, 3, 1, 2)
            place = F.interpolate(place, size=(grid, grid), mode="bicubic", align_corners=False)
            parts.append(x + place.flatten(2).transpose(1, 2) + w["vit.embeddings.scale_embed"][i])
        x = torch.cat(parts, 1).unflatten(0, (clips, frames))
        return (x + w["vit.embeddings.time_embed"][:frames, None]).flatten(1, 2)

    def slot_positions(self, frames):
        """[frames, SIZE, hidden]; the flattened positions are interpolated in one dimension, as the reference does."""
        w, parts = self.w, []
        pos = w["decoder.decoder_pos_embed"][:, 1:].transpose(1, 2).unsqueeze(2)
        for i, grid in enumerate(GRIDS):
            place = F.interpolate(pos, size=(1, grid * grid), mode="bicubic", align_corners=False)
            parts.append(place[0, :, 0].T + w["decoder.decoder_scale_embed"][i])
        return torch.cat(parts) + w["decoder.time_embed"][:frames, None]

    def layers(self, prefix, x, heads, mask):
        number = 0
        while f"{prefix}.{number}.output.dense.bias" in self.w:
            name = f"{prefix}.{number}"
            y = self.norm(x, f"{name}.layernorm_before")
            parts = (self.linear(y, f"{name}.attention.attention.{part}") for part in ("query", "key", "value"))
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            x = x + self.linear(y, f"{name}.attention.output.dense")
            y = self.linear(self.norm(x, f"{name}.layernorm_after"), f"{name}.intermediate.dense")
            x = x + self.linear(F.gelu(y), f"{name}.output.dense")
            number += 1
        return x

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-12)


def pick(x, ids):
    """Rows ids [B, N] of x [B, M, D]."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def mask(frame, real):
    """Who sees whom, [B, 1, 1 + N, 1 + N]: real tokens of the same and earlier frames; the class token sees itself."""
    clips, count = real.shape
    seen = torch.zeros(clips, count + 1, count + 1, dtype=torch.bool)
    seen[:, 1:, 1:] = (frame <= frame[:, None]) & real[:, None]
    seen[:, :, 0] = True
    seen[:, range(count), range(count)] = True  # off by one in the reference, where it has no effect on real tokens
    return seen[:, None]
