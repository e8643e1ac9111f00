"""CC as released: products of the errors of neighbours in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.losses._checks import refuse
from kdkit.losses._embedded import EmbeddedRelationLoss
from kdkit.losses._relations import samples

__all__ = ["CCReleasedLoss", "cc_released_loss"]


def cc_released_loss(student_embeddings: Tensor, teacher_embeddings: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Correlation congruence as its authors' code computes it.

    .. math:: \ell = \frac{1}{N - 1} \sum_{i=1}^{N-1} \sum_k \delta_{ik}\, \delta_{i+1,k}, \qquad
        \delta_i = |s_i - t_i|

    Each sample is paired with the next one that counts, so that the value depends on the order of the batch. 0 where
    of any two neighbours one agrees with the teacher in every place, in particular at equal embeddings, and for a
    batch of one; never negative.

    Args:
        student_embeddings: ``[B, D]``; maps ``[B, C, H, W]`` and tokens ``[B, T, D]`` are flattened per sample.
        teacher_embeddings: the same shape; a gradient flows to it, as its embedding may be learnt.
        mask: bool ``[B]``, true where a sample counts; with ``[B, T]`` every token is a sample.

    Returns:
        A 0-d tensor. Under data parallelism each rank relates its own samples.

    Raises:
        InputError: for shapes and dtypes outside the rules above.

    Source:
        Code of the authors of Peng et al. 2019, arXiv:1904.01802, in the comparison of Tian et al. 2020, where a
        batch of one is NaN. The loss that the paper's title names is :func:`~kdkit.losses.cc_loss`.
    """
    name = "cc_released_loss"
    student, teacher, mask = samples(name, student_embeddings, teacher_embeddings, mask, what="embeddings", learnt=True)
    if student.shape != teacher.shape:
        rule = f"of the shape of student_embeddings, {list(student_embeddings.shape)}"
        refuse(name, "teacher_embeddings", rule, teacher_embeddings)
    errors = (student - teacher).abs()
    if mask is not None:
        order = torch.argsort(mask.to(torch.uint8), descending=True, stable=True)
        errors = errors[order]  # masked ones, all zero, go last
    neighbours = max(len(errors) - 1, 1) if mask is None else (mask.sum() - 1).clamp(min=1)
    return torch.dot(errors[:-1].flatten(), errors[1:].flatten()) / neighbours


class CCReleasedLoss(EmbeddedRelationLoss):
    """CC as released: products of the absolute errors of neighbours in the batch, on learnt linear embeddings.

    Args:
        pair: name of the pair in the ``features`` settings; widths may differ.
        student_width: numbers per sample of the student's feature; ``None`` until :meth:`prepare`, as the next.
        teacher_width: the same of the teacher's.
        embedding: width of the embeddings.
    """

    reference = "released code of Peng et al. 2019, arXiv:1904.01802 (CC)"

    def relate(self, *embeddings: Tensor, mask: Tensor | None) -> Tensor:
        return cc_released_loss(*embeddings, mask=mask)
