"""Networks: builders for ``_target_``, the wrapper they live in, weight files, export and measurements.

Everything here is imported on first use, so that naming one builder loads only its own library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.models._language import LanguageNetwork
    from kdkit.models._network import Network, VisionNetwork
    from kdkit.models._normalization import resolve_normalization
    from kdkit.models._profile import count_flops, count_parameters, measure_latency
    from kdkit.models._texts import TextNetwork
    from kdkit.models._weights import convert_pickle, load_weights
    from kdkit.models.experts import multi_expert
    from kdkit.models.export import export_student
    from kdkit.models.reuse import ReusedClassifier
    from kdkit.models.sentence_encoders import SentenceEncoder, hf_sentence_encoder
    from kdkit.models.small import mlp, small_cnn
    from kdkit.models.text import hf_causal_lm
    from kdkit.models.text_classifiers import hf_text_classifier
    from kdkit.models.vision import hf_image_classifier, timm_model, torchvision_model

_EXPORTS = {
    "LanguageNetwork": "_language",
    "Network": "_network",
    "ReusedClassifier": "reuse",
    "SentenceEncoder": "sentence_encoders",
    "TextNetwork": "_texts",
    "VisionNetwork": "_network",
    "convert_pickle": "_weights",
    "count_flops": "_profile",
    "count_parameters": "_profile",
    "export_student": "export",
    "hf_causal_lm": "text",
    "hf_image_classifier": "vision",
    "hf_sentence_encoder": "sentence_encoders",
    "hf_text_classifier": "text_classifiers",
    "load_weights": "_weights",
    "measure_latency": "_profile",
    "mlp": "small",
    "multi_expert": "experts",
    "resolve_normalization": "_normalization",
    "small_cnn": "small",
    "timm_model": "vision",
    "torchvision_model": "vision",
}

__all__ = [
    "LanguageNetwork",
    "Network",
    "ReusedClassifier",
    "SentenceEncoder",
    "TextNetwork",
    "VisionNetwork",
    "convert_pickle",
    "count_flops",
    "count_parameters",
    "export_student",
    "hf_causal_lm",
    "hf_image_classifier",
    "hf_sentence_encoder",
    "hf_text_classifier",
    "load_weights",
    "measure_latency",
    "mlp",
    "multi_expert",
    "resolve_normalization",
    "small_cnn",
    "timm_model",
    "torchvision_model",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
