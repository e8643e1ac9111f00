"""Losses of language models that never hold the logits of a batch, and what computes them.

``kdkit.losses`` gives the same functions. Importing this package loads torch alone; Triton is imported by the first
call that runs on CUDA.
"""

from kdkit.losses._fused_linear import FusedParts, fused_linear_divergence

__all__ = ["FusedParts", "fused_linear_divergence"]
