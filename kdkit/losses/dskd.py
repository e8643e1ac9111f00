"""Dual-space knowledge distillation: each network's states read by the other one's head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.losses._base import FeatureLoss, Probe, Reduction
from kdkit.losses._checks import _check_float, check_labels, refuse
from kdkit.losses._classifiers import classify, head_of
from kdkit.losses._groups import check_sides, group_rows
from kdkit.losses._ops import clean, kl_rows, log_probs, pick, reduce, targets
from kdkit.losses._relations import in_full
from kdkit.outputs import IGNORE_INDEX, Alignment, StepOutputs

__all__ = ["DSKDLoss", "dskd_loss"]


def dskd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    teacher_in_student: Tensor,
    student_in_teacher: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""What each network says in the other one's vocabulary, held against what that one says itself.

    .. math:: \ell = - \log \tilde p_y + [\arg\max \tilde p = y]\, \mathrm{KL}(\mathrm{sg}(\tilde p) \| q)
        + \mathrm{KL}(p \| \tilde q)

    with the laws :math:`q` of the student and :math:`p` of the teacher, :math:`\tilde p`, what the student's head makes
    of the teacher's projected state, and :math:`\tilde q`, what the teacher's head makes of the student's. The first
    term teaches the projector to the student's space, and the second the student, by a law that is a constant
    (:math:`\mathrm{sg}`), where that law finds the right token. The third is in the teacher's space, and teaches the
    student and its projector. A class that the student bans (logit -inf) is banned in :math:`\tilde p` too. At
    positions without a label only the third term counts. The value is not zero at equality.

    Args:
        student_logits: ``[B, V]`` or ``[B, T, V]``.
        teacher_logits: ``[B, V']`` or ``[B, T, V']``, row by row about the same place; no gradient flows to it.
        teacher_in_student: logits of the teacher's projected states by the student's head, as ``student_logits``.
        student_in_teacher: logits of the student's projected states by the teacher's head, as ``teacher_logits``.
        labels: int64, one entry ``[...]`` per position, the student's token that follows; -100 for none.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Zhang et al. 2024 (DSKD), arXiv:2406.17328; with rows that are aligned rather than attended, Zhang et al. 2025
        (DSKD v2), arXiv:2504.11426. The value of the released code is half of this sum beside half of the
        cross-entropy.
    """
    name = "dskd_loss"
    check_sides(name, student_logits, teacher_logits, mask)
    positions, size = student_logits.shape[:-1], student_logits.shape[-1]
    if isinstance(labels, Tensor) and labels.is_floating_point():
        refuse(name, "labels", f"int64 of shape {list(positions)}", labels)
    check_labels(name, labels, positions, size, IGNORE_INDEX)
    for what, said, like in (
        ("teacher_in_student", teacher_in_student, student_logits),
        ("student_in_teacher", student_in_teacher, teacher_logits),
    ):
        if not isinstance(said, Tensor) or not said.is_floating_point() or said.shape != like.shape:
            refuse(name, what, f"float of shape {list(like.shape)}", said)
    index, valid = targets(labels, mask, IGNORE_INDEX)
    assert valid is not None
    log_q = log_probs(student_logits, 1.0, mask)
    guess = clean(teacher_in_student, mask).to(log_q.dtype).masked_fill(log_q == -torch.inf, -torch.inf)
    log_guess = guess.log_softmax(dim=-1)
    values = torch.where(valid, -pick(log_guess, index), 0.0)
    taught = kl_rows(log_guess.detach(), log_q)
    right = valid & (log_guess.argmax(dim=-1) == index)
    values = values + torch.where(right | taught.isnan(), taught, 0.0)
    log_p = log_probs(teacher_logits.detach(), 1.0, mask).to(log_q.dtype)
    values = values + kl_rows(log_p, log_probs(student_in_teacher, 1.0, mask).to(log_q.dtype))
    return reduce(values, mask, reduction, name)


class DSKDLoss(FeatureLoss):
    """Each network's last states, projected, are read by the other one's head and held against what that one says.

    The two projectors are linear, train with the student, and stay out of what is exported. Where the teacher has a
    tokenizer of its own, rows are those of groups of tokens with the same bytes.

    Args:
        pair: of the states that the heads read.
        student_head: the student's vocabulary projection; ``None`` takes that of the run.
        teacher_head: the teacher's, likewise.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    needs_labels = True
    needs_heads = ("student", "teacher")
    matched = False
    counts = "groups"
    crosses_tokenizers = True
    reference = "Zhang et al. 2024 (DSKD), arXiv:2406.17328"

    def __init__(
        self,
        pair: str = "penultimate",
        student_head: nn.Linear | None = None,
        teacher_head: nn.Linear | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(pair, reduction)
        self.to_student: nn.Linear | None = None
        self.to_teacher: nn.Linear | None = None
        self._heads: tuple[nn.Linear, ...] = ()
        if student_head is not None and teacher_head is not None:
            self._build(student_head, teacher_head)

    def _build(self, *heads: nn.Linear) -> None:
        """Heads are no part of this module: they belong to the networks."""
        self._heads = heads
        widths = [head.in_features for head in heads]
        self.to_student, self.to_teacher = nn.Linear(widths[1], widths[0]), nn.Linear(widths[0], widths[1])

    def prepare(self, probe: Probe) -> None:
        """Take both heads, and make the projectors, once."""
        heads = head_of("DSKDLoss", probe, "student"), head_of("DSKDLoss", probe, "teacher")
        if self.to_student is None:
            self._build(*heads)
        self._heads = heads

    def cross(
        self, student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of the teacher's states by the student's head, and of the student's by the teacher's; the heads are
        constants."""
        if self.to_student is None or self.to_teacher is None:
            way_out = "call prepare(probe) before the first step, or DSKDLoss(student_head=..., teacher_head=...)"
            refuse("DSKDLoss", "student_head", "known", None, way_out)
        out = []
        for side, states, projector, head in (
            ("teacher", teacher_features.detach(), self.to_student, self._heads[0]),
            ("student", student_features, self.to_teacher, self._heads[1]),
        ):
            _check_float("DSKDLoss", f"{side}_features", states, 1, "float of shape [B, D] or [B, T, D]")
            if states.shape[-1] != projector.in_features:
                rule = f"of width {projector.in_features}, which the {side}'s head reads"
                refuse("DSKDLoss", f"{side}_features", rule, states)
            rows = clean(states, mask)
            with in_full(rows):
                projected = projector(rows.to(projector.weight.dtype))
            out.append(classify(projected, head.weight.detach(), None if head.bias is None else head.bias.detach()))
        return out[0], out[1]

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        student, teacher, student_features, teacher_features, labels = tensors
        check_sides("DSKDLoss", student, teacher, options["mask"])
        guess, other = self.cross(student_features, teacher_features, options["mask"])
        size, others = student.shape[-1], teacher.shape[-1]  # padding of a vocabulary may have been cut off
        return dskd_loss(student, teacher, guess[..., :size], other[..., :others], labels, **options)

    def forward(  # type: ignore[override]
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        student_features: Tensor,
        teacher_features: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See the class and :func:`dskd_loss`."""
        sides = student_logits, teacher_logits, student_features, teacher_features
        return self.loss(*sides, labels, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step: those of a group at the position that predicts its first token."""
        both = out.student.logits, self.teacher_of(out).logits
        states = self.features_of(out, self.pair)
        if out.alignment is None:
            return self.loss(*both, *states, self.labels_of(out), mask=out.mask, reduction="none")
        alignment = out.alignment
        rows = group_rows("DSKDLoss", both[0], both[1].detach(), alignment, mask=out.mask)
        starts = Alignment.firsts(alignment.student_groups), Alignment.firsts(alignment.teacher_groups)
        keep = rows.where[starts[0]]
        picked = [side[firsts][keep] for side, firsts in zip(states, starts, strict=True)]
        labels = alignment.student_tokens[rows.where]
        values = self.loss(rows.student, rows.teacher, *picked, labels, mask=None, reduction="none")
        return values.new_zeros(rows.where.shape).masked_scatter(rows.where, values)
