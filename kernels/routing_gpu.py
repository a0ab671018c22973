"""Routing on a GPU: how routing.cu is called.

`route` and `arranged` ask it first. Tests have the processor run the same source by OpenCL
(COMMUNITY_KERNELS=simt) and in an emulator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.backend import simt
from community.kernels.build import SimtProgram

MOST = 640  # experts and choices together: with them a block needs less than 48 KiB
ONE = 1024  # pairs that one block sorts in one launch
EACH = 512  # pairs, about, of each block where there are more

Order = tuple[Tensor, Tensor, Tensor]  # order, place and offsets of a Route


class Router:
    """The kernels of routing.cu for tensors on "cuda", or on "cpu" to test them."""

    def __init__(self, program: SimtProgram, threads: int) -> None:
        self.program, self.threads = program, threads
        self.lines = threads // min(32, threads)  # tokens that a block decides on at a time

    def route(
        self, logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool
    ) -> tuple[Tensor, Tensor, Order, int]:
        """weights, experts, their order, and what is wrong: 1 logits that are not finite, 2 such a
        bias. logits (N, E) and bias (E) are float32."""
        n, e = logits.shape
        sort = _Sort(self, logits.new_empty(n, k, dtype=torch.int64), e, k)
        weights, bias = logits.new_empty(n, k), None if bias is None else bias.contiguous()
        given = (logits.contiguous(), bias, weights, sort.experts)
        sort.run("route", *given, more=(k, int(sigmoid)), room=self.room(sort, k))
        return weights, sort.experts, *sort.finished(bias)

    def room(self, sort: _Sort, k: int) -> int:
        """Floats of shared memory that `route` needs."""
        return self.threads + self.lines * (sort.count + k) + sort.room

    def order(self, experts: Tensor, count: int) -> tuple[Order, int]:
        """The order of experts (N, k), and what is wrong: 1 for an expert that is none."""
        sort = _Sort(self, experts.contiguous(), count, experts.shape[1])
        sort.run("route_counts", sort.experts)
        return sort.finished(None)


class _Sort:
    """Pairs of tokens and experts, and how blocks share them."""

    def __init__(self, router: Router, experts: Tensor, count: int, k: int) -> None:
        self.router, self.experts, self.count = router, experts, count
        self.pairs = experts.numel()
        self.each = self.pairs if self.pairs <= ONE else max(1, EACH // k) * k
        self.blocks = -(-self.pairs // self.each)
        whole = experts.new_empty
        self.counts = whole(self.blocks + 1, count + 1, dtype=torch.int32)
        self.order, self.place = whole(self.pairs), whole(experts.shape)
        self.offsets = whole(count + 1)

    @property
    def room(self) -> int:
        """Numbers of shared memory."""
        return max(self.each, self.count + 1)

    def run(
        self,
        kernel: str,
        *given: Tensor | None,
        more: tuple[int, ...] = (),
        room: int = 0,
        blocks: int = 0,
    ) -> None:
        made = (self.counts, self.order, self.place, self.offsets)
        sizes = (self.pairs, self.count, self.each, self.blocks)
        self.router.program(
            kernel,
            *(*given, *made, *sizes, *more),
            blocks=blocks or self.blocks,
            threads=self.router.threads,
            room=room or self.room,
        )

    def finished(self, bias: Tensor | None) -> tuple[Order, int]:
        """Order, place and offsets, and what is wrong."""
        if self.blocks > 1:
            self.run("route_starts", bias, self.experts, blocks=1)
            self.run("route_places", self.experts)
        return (self.order, self.place, self.offsets), int(self.counts[-1, 0])


def router(device: torch.device, experts: int, k: int, pairs: int) -> Router | None:
    """Who routes so many pairs on a device; None where others are to compute."""
    if experts + k > MOST or not 0 < pairs < 2**31:
        return None
    threads = 512 if device.type == "cuda" else 64
    program = simt("routing", device.type, f"-DTHREADS={threads}")
    return None if program is None else Router(program, threads)
