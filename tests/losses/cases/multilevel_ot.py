"""MultiLevelOT: a sequence decides the order of the entries, and its rows are transported."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.losses import sinkhorn_loss

from . import Case, Departure


def at_equality(case: Case) -> Tensor:
    """The entropy of each row and the blurred plan, both from elsewhere."""
    logits = case.inputs["student_logits"]
    logits = logits / (logits.var(dim=-1, correction=0, keepdim=True) + 1e-8).sqrt()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return 0.1 * entropy + 0.1 * sinkhorn_loss(logits, logits, epsilon=0.1)


DEPARTURE = Departure(
    shapes="",
    text=False,
    at_equality=at_equality,
    function_only=frozenset({"lengths"}),
    no_full_graph="the solver looks at its error",
)
