"""Sinkhorn distance between the batch of the student's laws and the batch of the teacher's."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from kdkit.losses._base import DistillationLoss
from kdkit.losses._checks import Temperature, check_at_least, check_temperature
from kdkit.losses._transport import Solver, TransportProblem, Value, batch_laws, transported
from kdkit.outputs import StepOutputs

__all__ = ["SinkhornLoss", "sinkhorn_loss"]

_PROBLEM = tuple(field.name for field in fields(TransportProblem))


def sinkhorn_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    cost_power: float = 1.0,
    epsilon: float = 0.1,
    solver: Solver = "sinkhorn",
    value: Value = "transport",
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
    marginal_penalty: float = 1.0,
    rank: int = 10,
    implementation: str = "auto",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Transport cost between the softened outputs of the student and of the teacher on one batch.

    .. math:: \ell = \langle P^\star, C \rangle, \qquad
        P^\star = \arg\min_{P 1 = a,\; P^\top 1 = b} \langle P, C \rangle + \epsilon\, \mathrm{KL}(P \| a b^\top),
        \qquad C_{ij} = \sum_c |q_{ic} - p_{jc}|^k

    :math:`q_i = \mathrm{softmax}(z_{s,i} / T)` and :math:`p_j = \mathrm{softmax}(z_{t,j} / T)` are the laws at the
    :math:`N` positions that count, each of weight :math:`a_i = b_j = 1/N`, so the plan has mass 1. The cost is the
    :math:`k`-norm of the difference to the power :math:`k`: the L1 distance (twice the total variation) for the
    default ``cost_power=1``, the squared Euclidean distance for 2. Teacher output :math:`j` may stand in for any
    sample of the batch, so the value relates samples; it is 0-d, and not zero at student = teacher: the entropic
    plan is blurred, and only ``epsilon`` towards 0 makes it the permutation of no cost.

    **Values and gradients.** The gradient is exact for the value reported, without unrolled iterations.
    ``value="transport"`` is :math:`\langle P^\star, C \rangle`, whose derivative in :math:`C` is *not*
    :math:`P^\star`, as :math:`P^\star` minimises another objective: the change of the plan is added by the implicit
    function theorem (one linear system of size N). ``value="regularized"`` is the minimum itself,
    :math:`\langle P^\star, C \rangle + \epsilon\, \mathrm{KL}(P^\star \| a b^\top)`, whose derivative is
    :math:`P^\star` by the envelope theorem. Both are as exact as the plan is converged (``tolerance``). Plan and
    gradient are computed in float64. A second derivative raises.

    **Solvers.** On the logits' device: "sinkhorn" (balanced) and "unbalanced" (marginals are penalised by
    ``marginal_penalty`` times their KL from the weights instead of held; the value is the whole minimised objective).
    From POT, on the host, on the same cost: "exact" (``ot.emd``, no ``epsilon``; derivative :math:`P^\star` wherever
    the optimum is unique) and "lowrank" (no ``epsilon``; plans of at most ``rank``; a local optimum, so its derivative
    is exact only where POT reached it).

    Args:
        student_logits: ``[B, C]``, or ``[B, T, V]``, whose positions are put into one batch. Time grows with
            :math:`N^2 C`: for text, keep :math:`N` small by the mask or the size of the micro-batch.
        teacher_logits: the same shape; no gradient flows to it.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        cost_power: :math:`k`, at least 1.
        epsilon: weight of the entropic term, in units of the cost; 0.1 as in SinKD.
        solver: "sinkhorn", "exact", "unbalanced" or "lowrank".
        value: "transport" or "regularized"; "unbalanced" knows the latter only, for POT's solvers both are the same.
        tolerance: total deviation of the marginals at which the iterations stop.
        max_iterations: at which they stop in any case.
        marginal_penalty: weight of both marginal KL terms of "unbalanced".
        rank: of the plan of "lowrank".
        implementation: of the costs and their gradient: "tiles" in blocks that fit a cache, "compiled" by
            ``torch.compile``, which costs some seconds at the first call and needs a C++ compiler (Triton on CUDA) but
            holds no pairs and takes a fraction of the time; "auto" is "tiles".
        mask: bool ``[B]`` or ``[B, T]``; the rows of other positions are dropped first.

    Returns:
        A 0-d tensor; 0 if no position counts. Under data parallelism each rank transports between its own samples.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.
        ConfigError: if a POT solver is asked for and POT is not installed.

    Source:
        Cui et al. 2024 (SinKD), arXiv:2402.17110; Cuturi 2013, arXiv:1306.0895; "unbalanced": Chizat et al. 2018,
        arXiv:1607.05816, with the translation of Séjourné et al. 2022, arXiv:2201.00730. The released code of SinKD
        differs in several ways: :func:`~kdkit.losses.sinkd_released_loss`.
    """
    student, teacher = batch_laws("sinkhorn_loss", student_logits, teacher_logits, temperature, mask)
    check_at_least("sinkhorn_loss", "cost_power", cost_power, 1.0)
    problem = TransportProblem(
        epsilon, solver, value, tolerance, max_iterations, marginal_penalty, rank, implementation
    )
    problem.check("sinkhorn_loss")
    if len(student) == 0:
        return student.sum()
    return transported(student, teacher, cost_power, problem)


class SinkhornLoss(DistillationLoss):
    """Sinkhorn distance between the student's and the teacher's outputs on a batch (SinKD); relates samples.

    Args:
        temperature: positive.
        cost_power: the cost is the k-norm of a difference of laws to the power k, k at least 1.
        epsilon: weight of the entropic term, in units of the cost.
        solver: "sinkhorn" or "unbalanced", or POT's "exact" or "lowrank".
        value: "transport" or "regularized".
        tolerance: total deviation of the marginals at which the iterations stop.
        max_iterations: at which they stop in any case.
        marginal_penalty: weight of both marginal KL terms of "unbalanced".
        rank: of the plan of "lowrank".
        implementation: of the costs and their gradient: "tiles", "compiled", or "auto" for "tiles".
    """

    reference = "Cui et al. 2024 (SinKD), arXiv:2402.17110"

    def __init__(
        self,
        temperature: Temperature = 1.0,
        cost_power: float = 1.0,
        epsilon: float = 0.1,
        solver: Solver = "sinkhorn",
        value: Value = "transport",
        tolerance: float = 1e-9,
        max_iterations: int = 1000,
        marginal_penalty: float = 1.0,
        rank: int = 10,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.temperature = check_temperature("SinkhornLoss", temperature)
        self.cost_power = check_at_least("SinkhornLoss", "cost_power", cost_power, 1.0)
        self.epsilon, self.solver, self.value = epsilon, solver, value
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.marginal_penalty, self.rank, self.implementation = marginal_penalty, rank, implementation
        TransportProblem(**self.options(*_PROBLEM)).check("SinkhornLoss")

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See :func:`sinkhorn_loss`."""
        own = self.options("temperature", "cost_power", *_PROBLEM)
        return sinkhorn_loss(student_logits, teacher_logits, **own, mask=mask)

    def compute(self, out: StepOutputs) -> Tensor:
        """The value of one step, 0-d."""
        return self.forward(out.student.logits, self.teacher_of(out).logits, mask=out.mask)
