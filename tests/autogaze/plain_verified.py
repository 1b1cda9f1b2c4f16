"""Verified gaze written straight from its definition: one clip, no cache, no search, every error painted anew."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from tests.autogaze import plain_greedy


class Painter:
    """Paints a clip frame by frame, and knows each frame's error as a share of the largest."""

    def __init__(self, frames, vocabulary):
        self.frames, size = frames, frames.shape[1]
        self.patches = plain_greedy.patches(vocabulary.scales, vocabulary.patch_size)
        self.regions = [plain_greedy.region(size, scale, vocabulary.patch_size, *at) for scale, *at in self.patches]
        self.worst = size * size * 3 * 255
        self.canvas = np.full((size, size, 3), 128, np.uint8)
        self.picture = cache(lambda t, scale: plain_greedy.resampled(frames[t], scale))

    def painted(self, t, tokens):
        canvas = self.canvas.copy()
        for token in tokens:
            where = self.regions[token]
            canvas[where] = self.picture(t, self.patches[token][0])[where]
        return canvas

    def error(self, t, tokens):
        return np.float32(plain_greedy.total_error(self.painted(t, tokens), self.frames[t]) / self.worst)

    def keep(self, t, tokens):
        self.canvas = self.painted(t, tokens)


def greedy(painter, t, tokens, threshold, cap):
    """The tokens, and the best ones after them, until the threshold is met, the cap is reached or none helps."""
    tokens = list(tokens)
    while painter.error(t, tokens) > threshold and len(tokens) < cap:
        errors = {token: painter.error(t, [*tokens, token]) for token in range(len(painter.regions))}
        free = [token for token in errors if token not in tokens]
        best = min(free, key=lambda token: (errors[token], token))
        if errors[best] >= painter.error(t, tokens):
            break
        tokens.append(best)
    return tokens


def block(policy, x, begin):
    """The K patches that the policy chooses after tokens x [n, hidden], and the loss it predicts before each.

    begin: patches that the frame has already. Positions are consistent: each token is at its own place.
    """
    decoder, length = policy.gazing_model.gaze_decoder, len(x)

    def attend(layer, queries, keys, values):
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        mask = torch.ones(length, length, dtype=torch.bool).tril()[-queries.shape[2] :]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2)

    hidden = decoder(x[None], torch.arange(length)[None], attend, torch.tensor([[length - 1]]))[0, 0]
    chosen = []
    for scores in decoder.scores(hidden):
        scores[[policy.vocabulary.eos, *begin, *chosen]] = -torch.inf
        chosen.append(int(scores.argmax()))
    return chosen, decoder.losses(hidden).tolist()


@torch.no_grad()
def plain_verified(frames, policy, threshold, cap, stop, go_on):
    """The verified gaze of one clip uint8 [T, S, S, 3]: lists of T lists of tokens, and T lists of 3 origins."""
    threshold, width = np.float32(threshold), policy.config.block_size
    vision = policy.encode(torch.from_numpy(frames)[None]).tokens[0]
    painter, before = Painter(frames, policy.vocabulary), vision[:0, 0]
    found, origins = [], []
    for t in range(len(frames)):
        before = torch.cat((before, vision[t]))
        tokens, end, stopped = [], cap, None
        while painter.error(t, tokens) > threshold and len(tokens) < end:
            embedded = policy.gazing_model.gaze_decoder.embed(torch.tensor(tokens, dtype=torch.int64))
            new, predicted = block(policy, torch.cat((before, embedded)), tokens)
            hits = [len(tokens) + k for k, loss in enumerate(predicted) if loss <= np.float32(stop)]
            if stopped is None and any(hits):
                stopped = next(slot for slot in hits if slot)
                end = min(cap, (stopped // width + 1 + go_on) * width)
            for token in new:
                if painter.error(t, tokens) > threshold and len(tokens) < cap:
                    tokens.append(token)
        by_policy, first = len(tokens), cap if stopped is None else stopped
        tokens = greedy(painter, t, tokens, threshold, cap)
        if painter.error(t, tokens) > threshold:
            tokens, by_policy = greedy(painter, t, [], threshold, cap), 0
        painter.keep(t, tokens)
        prefix = min(by_policy, first)
        found.append(tokens)
        origins.append([prefix, by_policy - prefix, len(tokens) - by_policy])
        before = torch.cat((before, policy.gazing_model.gaze_decoder.embed(torch.tensor(tokens, dtype=torch.int64))))
    return found, origins
