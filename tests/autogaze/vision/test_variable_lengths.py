"""What a GPU's variable-length attention is given: the same segments, and the same result by its own definition."""

import pytest
import torch

from autogaze.vision.attention import MODES, Segments, VariableLengths, among
from autogaze.vision.plan import Plan


def by_definition(query, key, value, plan: VariableLengths) -> torch.Tensor:
    """PyTorch's varlen_attn as documented: segment i of queries sees `keys_used[i]` keys from `key_starts[i]` on."""
    parts = []
    for n in range(len(plan.keys_used)):
        start, end = plan.query_bounds[n : n + 2].tolist()
        first = int(plan.key_starts[n])
        keys = slice(first, first + int(plan.keys_used[n]))
        assert end - start <= plan.most_queries and int(plan.keys_used[n]) <= plan.most_keys
        parts.append(among(query[start:end], key[keys], value[keys]))
    return torch.cat(parts)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_one_call_of_variable_lengths_sees_what_the_segments_see(gazes, mode, prefix):
    plan = Plan.of(gazes([[12, 0, 5, 9], [0, 7, 1, 30], [3, 3, 3, 3]]), prefix)
    segments = Segments.of(plan, mode, torch.device("cpu"))
    lengths = VariableLengths.of(segments, torch.device("cpu"))
    query, key, value = torch.randn(3, plan.rows, 2, 8, generator=torch.Generator().manual_seed(0))
    keys, values = (x if lengths.gathered is None else x[lengths.gathered] for x in (key, value))
    assert lengths.query_bounds.dtype == lengths.key_starts.dtype == lengths.keys_used.dtype == torch.int32
    assert int(lengths.query_bounds[-1]) == plan.rows
    found = by_definition(query, keys, values, lengths)
    torch.testing.assert_close(found, segments.attend(query, key, value), atol=1e-5, rtol=0)


def test_block_causal_attention_copies_no_key(gazes):
    segments = Segments.of(Plan.of(gazes([[12, 0, 5, 9]]), 1), "block_causal", torch.device("cpu"))
    assert VariableLengths.of(segments, torch.device("cpu")).gathered is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mode", MODES)
def test_a_gpu_gives_what_a_cpu_gives(checkpoint, gazes, pixels, mode):
    from autogaze.vision import load

    gaze, frames = gazes([[12, 0, 5, 9], [0, 7, 1, 30]]), pixels()
    scales = (16, 32, 64)
    wanted = load(checkpoint("dinov2"), scales, mode).encode(frames, gaze).tokens
    for dtype, apart in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        found = load(checkpoint("dinov2"), scales, mode, "cuda", dtype).encode(frames, gaze).tokens
        torch.testing.assert_close(found.float().cpu(), wanted, atol=apart, rtol=0)
