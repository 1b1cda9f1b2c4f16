"""RL written straight down, to compare with: no actors, no schedule, no checkpoints, one rank, one loop.

Every version's weights are kept; the groups of step s are sampled by a copy with those of version max(0, s - lag).
"""

from __future__ import annotations

import copy

import torch

from autogaze import reconstruction
from autogaze.model import AutoGaze, Sampling
from autogaze.objectives import group_advantages, grpo_loss, last_slots, loss_prediction_loss, slot_advantages
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import LoaderConfig
from pipelines.rl.config import RLConfig
from pipelines.rl.rollouts import draw_frames, group_generator, seed_of
from pipelines.train.config import learning_rate


def plain_rl(config: RLConfig, policy: AutoGaze, threshold: float, lag: int) -> dict[str, torch.Tensor]:
    """The weights after the whole run of a policy that begins like this one. Reference objective, strategy self."""
    loader_config = LoaderConfig(
        data=[config.data],
        seed=config.loader.seed,
        window=config.loader.window,
        global_batch=config.global_batch,
        workers=0,
        val_fraction=config.loader.val_fraction,
    )
    loader = ShardLoader(loader_config)
    steps = max(1, round(config.epochs * loader.steps_per_epoch))
    canvas, run = reconstruction.load("canvas"), config.loader.seed
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.optimizer.lr, weight_decay=0.0)
    sample, objective = config.sample, config.objective
    versions = [copy.deepcopy(policy)]
    for batch in loader:
        if batch.step == steps:
            break
        for row, number in enumerate(batch.ids.tolist()):
            heat = sample.temperature * (sample.min_temperature / sample.temperature) ** (batch.step / steps)
            how = {"temperature": heat, "top_k": sample.top_k or None}
            at = draw_frames(group_generator(run, batch.epoch, number), batch.frames.shape[1], objective.frames)
            clip = batch.frames[row : row + 1, : at[-1] + 1]
            sampler = versions[max(0, batch.step - lag)]
            one = Sampling(seeds=[seed_of(run, batch.epoch, number, -1)], **how)
            first = sampler.rollout(clip, one, max_ratio=config.max_ratio, loss_threshold=threshold)
            seeds = [seed_of(run, batch.epoch, number, member) for member in range(sample.group)]
            copies = clip.expand(sample.group, -1, -1, -1, -1)
            rollout = sampler.rollout(copies, Sampling(seeds=seeds, **how), slots=first.gaze.lengths[0].tolist())
            errors = canvas.reconstruct(copies, rollout.gaze, at).error

            padded = rollout.gaze.padded()
            valid, slots = ~padded["if_padded_gazing"], padded["num_gazing_each_frame"]
            scores = policy.score(policy.encode(clip).repeat(sample.group), rollout.gaze, Sampling(**how))
            advantages = group_advantages(-errors[None])[0]
            frames = torch.tensor(at).expand(sample.group, -1)
            each = slot_advantages(advantages, frames, valid, slots, objective.discount)
            frame = torch.repeat_interleave(torch.arange(len(slots)), slots)
            counted = last_slots(valid, slots) & torch.isin(frame, torch.tensor(at))
            measured = torch.zeros(valid.shape)
            for place, t in enumerate(at):
                measured[:, frame == t] = errors[:, place : place + 1]
            grpo = grpo_loss(scores.log_probs, each, valid).mean()
            prediction = loss_prediction_loss(scores.loss_predictions, measured, valid, counted).mean()
            loss = grpo + config.loss_prediction * prediction
            (loss / config.global_batch).backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, batch.step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        versions.append(copy.deepcopy(policy))
    return {name: tensor.detach() for name, tensor in policy.state_dict().items()}
