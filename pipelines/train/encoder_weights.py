"""Which of an encoder's weights learn: all of them, those at its beginning or end, or learnt embeddings alone."""

from __future__ import annotations

from torch import nn

from autogaze.vision import GazedEncoder
from pipelines.errors import PipelineError


def choose_weights(encoder: GazedEncoder, learn: str, layers: int) -> None:
    """Set requires_grad of every weight. Embeddings of scale and time always learn, where there are any.

    learn: "all"; "first": patches, positions and the first `layers`; "last": the last `layers`, the final norm and the
        pooling; "embeddings": nothing else.
    Raises PipelineError: there are fewer layers, or no embeddings.
    """
    model, family = encoder.model, encoder.family
    stack = [[part for part in vars(layer).values() if part is not None] for layer in family.layers(model)]
    if layers > len(stack):
        raise PipelineError(f"layers={layers}: this {family.name} has {len(stack)} layers")
    if learn == "embeddings" and encoder.embeddings is None:
        raise PipelineError("learn=embeddings: this encoder has none to learn; add embeddings=true")
    encoder.requires_grad_(learn == "all")
    if encoder.embeddings is not None:
        encoder.embeddings.requires_grad_()
    if learn not in ("first", "last"):
        return
    of_stack = {id(weight) for parts in stack for part in parts for weight in part.parameters()}
    begins = {id(weight) for part in _beginning(encoder) for weight in part.parameters()}
    chosen = stack[:layers] if learn == "first" else stack[len(stack) - layers :]
    for weight in model.parameters():
        if id(weight) not in of_stack:
            weight.requires_grad_((id(weight) in begins) == (learn == "first"))
    for part in (part for parts in chosen for part in parts):
        part.requires_grad_()


def _beginning(encoder: GazedEncoder) -> list[nn.Module]:
    """What comes before the layers."""
    norm = encoder.family.first_norm(encoder.model)
    return [encoder.model.embeddings, *([] if norm is None else [norm])]
