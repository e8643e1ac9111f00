"""Encoders of transformers that turn a text into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit._files import installed_folder
from kdkit.errors import ConfigError
from kdkit.features.taps import find_blocks
from kdkit.models._build import Origin, construct, note_origin, plain, quiet_transformers
from kdkit.models.vision import hf_config

__all__ = ["MeanPooling", "SentenceEncoder", "hf_sentence_encoder"]


class MeanPooling(nn.Module):
    """The mean of the states of all tokens that are no padding, scaled to length 1."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """``[B, T, D]`` and ``[B, T]`` to ``[B, D]``."""
        counted = mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * counted).sum(1) / counted.sum(1).clamp(min=1), dim=-1)


class SentenceEncoder(nn.Module):
    """An encoder and the mean of its states; the layer ``embedding`` gives the vectors ``[B, D]`` of length 1.

    Args:
        encoder: a model of transformers whose output has ``last_hidden_state``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]
        self.encoder = encoder
        self.embedding = MeanPooling()

    @property
    def config(self) -> Any:
        """Of the encoder."""
        return self.encoder.config

    @property
    def base_model(self) -> nn.Module:
        """The encoder."""
        return self.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Vectors ``[B, D]`` of texts ``[B, T]``."""
        kinds = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kinds).last_hidden_state
        embedding: Tensor = self.embedding(states, attention_mask)
        return embedding

    def save_pretrained(self, folder: str | Path) -> None:
        """The encoder, as ``AutoModel`` reads it."""
        self.encoder.save_pretrained(folder)  # type: ignore[operator]

    @classmethod
    def from_pretrained(cls, folder: str | Path, output_loading_info: bool = False) -> Any:
        """The encoder in a folder, and with ``output_loading_info`` what of it was missing."""
        import transformers

        encoder, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        report["missing_keys"] = {name for name in report["missing_keys"] if not name.startswith("pooler.")}
        return (cls(encoder), report) if output_loading_info else cls(encoder)


def hf_sentence_encoder(
    *,
    pretrained: str | bool | None = None,
    keep_layers: Sequence[int] | None = None,
    model_type: str | None = None,
    vocab_size: int | None = None,
    **options: Any,
) -> SentenceEncoder:
    """An encoder of texts with mean pooling: pretrained, some layers of a pretrained one, or fresh.

    Args:
        pretrained: folder or hub name, or ``"package:NAME/FOLDER"`` for a folder inside an installed Python package;
            ``None`` and ``False`` for a fresh network.
        keep_layers: numbers of the layers that are kept, counted from 0: a shallow student that starts from its
            teacher's weights (``[0, 5]``); ``None`` keeps all.
        model_type: e.g. ``"bert"``, of a fresh network.
        vocab_size: entries of the vocabulary of a fresh network.
        options: fields of the configuration of a fresh network.

    Raises:
        ConfigError: for an unknown model type or field, weights that can not be read, or layers that there are not.
    """
    import transformers

    if pretrained:
        name = str(pretrained)
        try:
            with quiet_transformers():
                module = SentenceEncoder.from_pretrained(
                    installed_folder(name) if name.startswith("package:") else name
                )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"sentence encoder '{name}' can not be loaded: {reason}") from error
    elif model_type is None or vocab_size is None:
        raise ConfigError("hf_sentence_encoder: give pretrained (a name), or model_type and vocab_size (fresh)")
    else:
        config = hf_config(model_type, "MODEL_MAPPING_NAMES", {**plain(options), "vocab_size": vocab_size})
        what = f"transformers model '{model_type}'"
        module = SentenceEncoder(construct(what, transformers.AutoModel.from_config, config))
    if keep_layers is not None:
        _keep(module, list(keep_layers))
    ready = bool(pretrained) and keep_layers is None
    note_origin(module, Origin("transformers", type(module.encoder).__name__, ready=ready))
    return module


def _keep(module: SentenceEncoder, layers: list[int]) -> None:
    found = find_blocks(module)
    count = 0 if found is None else len(found[1])
    if found is None or not layers or any(not 0 <= layer < count for layer in layers):
        raise ConfigError(f"keep_layers must be numbers of the {count} layers, from 0 to {count - 1}, got {layers}")
    parent, _, child = found[0].rpartition(".")
    setattr(module.get_submodule(parent), child, nn.ModuleList([found[1][layer] for layer in layers]))
    module.config.num_hidden_layers = len(layers)
