"""The fused losses in torch: a tile of rows at a time, whose logits its gradient overwrites.

A tile is the logits of both networks for some rows, ``[2, R, V]``. Value and gradient come block by block from the
kernels of the dense losses. The gradient takes the place of the student's logits and goes through two products into
the gradients of hidden states and head. Nothing is computed twice, and rows that do not count take part in nothing.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

import torch
from torch import Tensor

from kdkit.kernels._problem import Gradients, Network, Problem, Solved
from kdkit.kernels._rows import RowsOfTile
from kdkit.losses._blocks import _POOL, buffer

__all__ = ["Tiles", "arithmetic", "chunked", "tile_rows"]

_TILES = 56 * 2**20
"""Bytes of a tile on a CPU; with scratch and the buffers of the matrix products the sum is below 64 MiB."""
_ACCELERATOR_TILES = 2**30
_STRIPE = 2**19
"""Entries of a head in one product: what fits into the cache of a core."""


EachTile = Callable[[Tensor, Tensor, int, float | Tensor, Tensor], None]


def arithmetic(problem: Problem) -> torch.dtype:
    """float64 if anything is, else float32."""
    given = (*problem.student.tensors(), *problem.teacher.tensors())
    wide = any(each is not None and each.dtype == torch.float64 for each in given)
    return torch.float64 if wide else torch.float32


def networks(problem: Problem) -> int:
    """How many networks have logits to compute."""
    return 1 + isinstance(problem.teacher, Network)


def tile_rows(problem: Problem, dtype: torch.dtype) -> int:
    """Rows whose logits exist at a time."""
    rows, device = max(len(problem.kept), 1), problem.student.hidden.device
    if problem.chunk is not None:
        return min(problem.chunk, rows)
    budget = _TILES if device.type == "cpu" else _ACCELERATOR_TILES
    most = max(budget // (networks(problem) * dtype.itemsize * len(problem.student.head)), 1)
    most = most // 16 * 16 or most  # what matrix products like
    return min(most, rows)


def chunked(problem: Problem, needed: tuple[bool, bool, bool], row_weights: float | Tensor) -> Solved:
    """The solver for any device; see :data:`~kdkit.kernels._problem.Solver`."""
    with torch.no_grad():
        return Tiles(problem, needed, row_weights, RowsOfTile.of).run()


def _mixed(network: Network) -> bool:
    """Whether products are taken in bfloat16 with float32 sums, as tensor cores do; float16 would lose small slopes."""
    dtypes = (network.hidden.dtype, network.head.dtype)
    return network.hidden.is_cuda and dtypes == (torch.bfloat16, torch.bfloat16)


def multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """``left @ right`` into ``out``, whose dtype is wider."""
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


class Tiles:
    """The state of one pass.

    Args:
        problem, needed, row_weights: as for a solver.
        rows: a context that gives ``rows(student, teacher, first, weights, values)``, see
            :class:`~kdkit.kernels._rows.RowsOfTile`; it is called with the problem, the dtype of the arithmetic,
            whether a gradient is needed, and the rows of a tile.
    """

    def __init__(
        self,
        problem: Problem,
        needed: tuple[bool, bool, bool],
        row_weights: float | Tensor,
        rows: Callable[[Problem, torch.dtype, bool, int], contextlib.AbstractContextManager[EachTile]],
    ) -> None:
        self.problem, self.needed, self.row_weights, self.rows = problem, needed, row_weights, rows
        self.dtype, self.device = arithmetic(problem), problem.student.hidden.device
        student, self.vocabulary = problem.student, len(problem.student.head)
        self.values = torch.zeros(2, len(problem.kept), dtype=self.dtype, device=self.device)
        like = {"dtype": self.dtype, "device": self.device}
        self.gradients = Gradients(
            torch.zeros(student.hidden.shape, **like) if needed[0] else None,  # type: ignore[call-overload]
            None,
            torch.zeros(self.vocabulary, **like) if needed[2] else None,  # type: ignore[call-overload]
        )
        self.head: Tensor | None = None

    def run(self) -> Solved:
        """All tiles."""
        rows = len(self.problem.kept)
        high = tile_rows(self.problem, self.dtype)
        if rows:
            tiles = torch.empty(networks(self.problem), high, self.vocabulary, dtype=self.dtype, device=self.device)
            with self.rows(self.problem, self.dtype, any(self.needed), high) as rows_of_tile:
                for start in range(0, rows, high):
                    self._tile(rows_of_tile, start, min(start + high, rows), tiles)
        head = self.head
        if self.needed[1] and head is None:
            head = torch.zeros(self.problem.student.head.shape, dtype=self.dtype, device=self.device)
        return Solved(self.values[0], self.values[1], self.gradients._replace(head=head))

    def _tile(self, rows_of_tile: EachTile, start: int, stop: int, tiles: Tensor) -> None:
        student, teacher = tiles[0, : stop - start], tiles[-1, : stop - start]
        hidden = self._project(self.problem.student, start, stop, student)
        if isinstance(self.problem.teacher, Network):
            self._project(self.problem.teacher, start, stop, teacher)
        weights = self.row_weights if isinstance(self.row_weights, float) else self.row_weights[start:stop]
        rows_of_tile(student, teacher, start, weights, self.values)
        self._spread(hidden, student, start, stop)

    def _project(self, network: Network, start: int, stop: int, out: Tensor) -> Tensor:
        """Raw logits of these rows into ``out``; returns their hidden states, scaled."""
        hidden = network.hidden.index_select(0, self.problem.kept[start:stop])
        bias = None if network.bias is None else network.bias.to(self.dtype) * network.scale
        if _mixed(network):
            multiply(hidden, network.head.T, out)
            if network.scale != 1.0:
                out.mul_(network.scale)
            if bias is not None:
                out.add_(bias)
            return hidden
        hidden = hidden.to(self.dtype)
        if network.scale != 1.0:
            hidden = hidden * network.scale

        def work(first: int, last: int) -> None:
            head, into = network.head[first:last].to(self.dtype), out[:, first:last]
            if bias is None:
                torch.mm(hidden, head.T, out=into)
            else:
                torch.addmm(bias[first:last], hidden, head.T, out=into)

        self._stripes(work, network.head.shape[1])
        return hidden

    def _spread(self, hidden: Tensor, slope: Tensor, start: int, stop: int) -> None:
        """The gradient of a tile's logits into those of hidden states, head and bias."""
        network = self.problem.student
        if self.gradients.bias is not None:
            self.gradients.bias.add_(slope.sum(dim=0), alpha=network.scale)
        mixed = _mixed(network)
        if mixed:
            slope = slope.mul_(network.scale).to(network.head.dtype)
        if self.needed[0]:
            self._spread_hidden(slope, start, stop)
        if not self.needed[1]:
            return
        first_tile = self.head is None
        if self.head is None:
            self.head = buffer(network.head.shape, self.dtype, self.device)
        head = self.head

        def work(first: int, last: int) -> None:
            if mixed and first_tile:
                multiply(slope[:, first:last].T, hidden, head[first:last])
            elif mixed:
                room = torch.empty_like(head[first:last])
                head[first:last].add_(multiply(slope[:, first:last].T, hidden, room))
            elif first_tile:
                torch.mm(slope[:, first:last].T, hidden, out=head[first:last])
            else:
                head[first:last].addmm_(slope[:, first:last].T, hidden)

        self._stripes(work, network.head.shape[1])

    def _spread_hidden(self, slope: Tensor, start: int, stop: int) -> None:
        network, into = self.problem.student, self.gradients.hidden
        assert into is not None
        if slope.dtype != self.dtype:
            product = multiply(
                slope, network.head, slope.new_empty(stop - start, network.head.shape[1], dtype=self.dtype)
            )
        elif network.head.dtype == self.dtype:
            product = slope @ network.head
        else:
            product = slope.new_zeros(stop - start, network.head.shape[1])
            step = max(_STRIPE // network.head.shape[1], 1)
            for first in range(0, self.vocabulary, step):
                part = slice(first, min(first + step, self.vocabulary))
                product.addmm_(slope[:, part], network.head[part].to(self.dtype))
        if network.scale != 1.0 and slope.dtype == self.dtype:
            product.mul_(network.scale)
        into.index_copy_(0, self.problem.kept[start:stop], product)

    def _stripes(self, work: Callable[[int, int], None], width: int) -> None:
        """``work(first, last)`` on stripes of the vocabulary, each on one core of a CPU: a product of few rows with a
        long matrix is slow where torch splits the rows."""
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        step = max(min(_STRIPE // width, -(-self.vocabulary // workers)), 1)
        if self.device.type != "cpu":
            step = self.vocabulary if self.problem.student.head.dtype == self.dtype else 16 * step
        spans = [(first, min(first + step, self.vocabulary)) for first in range(0, self.vocabulary, step)]
        if workers == 1 or len(spans) == 1:
            for span in spans:
                work(*span)
            return
        todo: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for span in spans:
            todo.put(span)

        def run() -> None:
            with torch.no_grad(), contextlib.suppress(queue.Empty):
                while True:
                    work(*todo.get_nowait())

        for future in [_POOL.get(workers).submit(run) for _ in range(workers)]:
            future.result()
