"""The encoder of a job: loaded once to know its facts, and again by each actor, which must find the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autogaze.patches import PatchVocabulary
from autogaze.vision import GazedEncoder
from pipelines.encode.config import EncodeConfig, layer_names
from pipelines.errors import PipelineError
from pipelines.networks.encoders import EncoderConfig, open_encoder


@dataclass(frozen=True)
class ResolvedEncoder:
    """What an actor is given, and dataset.json records.

    Attributes:
        facts: all that features depend on: fingerprint, family, width, layers, and the settings.
        layers: names of those to store: see pipelines.encode.config.layer_names.
        vocabulary: the patches it reads.
    """

    config: EncoderConfig
    facts: dict[str, Any]
    layers: list[str]
    vocabulary: PatchVocabulary

    @property
    def hidden(self) -> list[int]:
        """Numbers of the hidden states among `layers`."""
        return [int(name.removeprefix("hidden_")) for name in self.layers if name.startswith("hidden_")]

    @property
    def words(self) -> str:
        """What it is, for a run's record."""
        scales = "+".join(map(str, self.vocabulary.scales))
        seen, facts = f"{scales}/{self.vocabulary.patch_size}", self.facts
        return f"{facts['family']} ({facts['fingerprint'][:12]}) in {facts['dtype']}, {seen}, {facts['attention']}"


def resolve_encoder(config: EncodeConfig) -> ResolvedEncoder:
    """The encoder of a config that has been checked. It is loaded, on the CPU. Raises PipelineError."""
    encoder = open_encoder(config.encoder, "cpu")
    layers = len(encoder.family.layers(encoder.model))
    facts = {
        "fingerprint": encoder.fingerprint,
        "family": encoder.family.name,
        "width": encoder.width,
        "layers": layers,
        "attention": encoder.attention,
        "dtype": config.encoder.dtype,
    }
    return ResolvedEncoder(config.encoder, facts, layer_names(config.layers, layers), encoder.vocabulary)


def start_encoder(resolved: ResolvedEncoder, device: str) -> GazedEncoder:
    """The same encoder on a device: cpu, cuda or mps.

    Raises PipelineError when it does not load here, or is another than the job was begun with.
    """
    encoder = open_encoder(resolved.config, device)
    if encoder.fingerprint != resolved.facts["fingerprint"]:
        raise PipelineError(
            f"encoder.checkpoint={resolved.config.checkpoint}: its weights changed while the job ran, or differ "
            "between nodes; put the same checkpoint on every node"
        )
    return encoder
