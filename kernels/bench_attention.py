"""Attention against torch SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from warnings import warn

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from community.kernels.attention import attention, reference
from community.kernels.timing import Case, Run


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward and backward against torch SDPA: H 8, D 64, float32; one query as in decoding."""
    sizes = [(1, 64)] if quick else product((1, 4, 8), (256, 512, 1024))
    for (b, t), causal, backward in product(sizes, (True, False), (False, True)):
        yield _case(b, t, causal, backward, device)
    for b, t in [(1, 64)] if quick else [(1, 512), (1, 4096), (8, 1024)]:
        yield _decoding(b, t, device)
    if not quick and device == "cpu":
        yield from _flexible(1, 1024)


def _case(b: int, t: int, causal: bool, backward: bool, device: str) -> Case:
    made = torch.Generator().manual_seed(b * t)
    q, k, v, g = (torch.randn(b, 8, t, 64, generator=made).to(device) for _ in range(4))
    temperature = torch.linspace(0.6, 1.4, 8, device=device)
    sharper = q / temperature.view(-1, 1, 1)  # the peer has no temperature: it is given for free

    def run(make: Callable[[], tuple[Tensor, list[Tensor]]]) -> Run:
        if not backward:
            return lambda: (make()[0],)
        for x in (q, k, v, sharper):
            x.requires_grad_()
        out, leaves = make()
        return lambda: torch.autograd.grad(out, leaves, g, retain_graph=True)

    def ours() -> tuple[Tensor, list[Tensor]]:
        out, _ = attention(q, k, v, causal=causal, temperature=temperature)
        return out, [q, k, v]

    def peer() -> tuple[Tensor, list[Tensor]]:
        return scaled_dot_product_attention(sharper, k, v, is_causal=causal), [sharper, k, v]

    def truth() -> tuple[Tensor, list[Tensor]]:
        wide = [x.detach().double().requires_grad_(backward) for x in (q, k, v)]
        out, _ = reference(*wide, causal=causal, temperature=temperature.double())
        return out, wide

    def true_results() -> tuple[Tensor, ...]:
        out, wide = truth()
        return torch.autograd.grad(out, wide, g.double()) if backward else (out,)

    name = f"attention {'causal' if causal else 'full'} {'backward' if backward else 'forward'}"
    return Case(f"{name} B {b} T {t}", run(ours), {"sdpa": run(peer)}, true_results)


def _decoding(b: int, t: int, device: str) -> Case:
    made = torch.Generator().manual_seed(b * t)
    q = torch.randn(b, 8, 1, 64, generator=made).to(device)
    k, v = (torch.randn(b, 8, t, 64, generator=made).to(device) for _ in range(2))
    return Case(
        f"attention, one query, B {b} T {t}",
        lambda: (attention(q, k, v)[0],),
        {"sdpa": lambda: scaled_dot_product_attention(q, k, v)},
        lambda: (reference(q.double(), k.double(), v.double())[0],),
    )


def _flexible(b: int, t: int) -> Iterator[Case]:
    """Against FlexAttention, which takes half a minute to compile; nothing where it cannot."""
    made = torch.Generator().manual_seed(b * t)
    q, k, v = (torch.randn(b, 8, t, 64, generator=made) for _ in range(3))
    seen = create_block_mask(lambda b, h, i, j: i >= j, None, None, t, t, device="cpu")
    compiled = torch.compile(flex_attention)
    try:
        compiled(q, k, v, block_mask=seen)
    except RuntimeError as error:  # of the compiler, such as a missing g++
        warn(f"FlexAttention does not compile here: {error}", RuntimeWarning, stacklevel=2)
        return
    yield Case(
        f"attention causal forward B {b} T {t}",
        lambda: (attention(q, k, v, causal=True)[0],),
        {"flex": lambda: compiled(q, k, v, block_mask=seen)},
        lambda: (reference(q.double(), k.double(), v.double(), causal=True)[0],),
    )
