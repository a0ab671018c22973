"""Attention against torch SDPA, and against flash-attn on a GPU where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from warnings import warn

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from community.kernels.attention import attention, reference
from community.kernels.timing import Case, Run

Made = Callable[[], tuple[Tensor, list[Tensor]]]
Sizes = tuple[int, int, int, int]  # B, H, T, D


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward and backward: float32, H 8, D 64 on the processor, and one query as in decoding; on
    a GPU bfloat16, 16,384 tokens and a model width of 2,048, as in the papers on FlashAttention."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if quick:
        sizes: list[Sizes] = [(1, 8, 64, 64)]
    elif device == "cpu":
        sizes = [(b, 8, t, 64) for b, t in product((1, 4, 8), (256, 512, 1024))]
    else:
        lengths = (1024, 2048, 4096, 8192, 16384)
        sizes = [(16384 // t, 2048 // d, t, d) for d, t in product((64, 128), lengths)]
    for size, causal, backward in product(sizes, (True, False), (False, True)):
        yield _case(size, causal, backward, device, dtype)
    if device == "cpu":
        for b, t in [(1, 64)] if quick else [(1, 512), (1, 4096), (8, 1024)]:
            yield _decoding(b, t)
        if not quick:
            yield from _flexible(1, 1024)


def _case(size: Sizes, causal: bool, backward: bool, device: str, dtype: torch.dtype) -> Case:
    b, h, t, d = size
    made = torch.Generator(device).manual_seed(b * t)
    q, k, v, g = (torch.randn(size, generator=made, device=device, dtype=dtype) for _ in range(4))
    temperature = torch.linspace(0.6, 1.4, h, device=device)
    # the peers have no temperature: it is given for free
    sharper = (q.float() / temperature.view(-1, 1, 1)).to(dtype)

    def run(make: Made, go: Tensor = g) -> Run:
        if not backward:
            return lambda: (make()[0],)
        for x in (q, k, v, sharper):
            x.requires_grad_()
        out, leaves = make()
        return lambda: torch.autograd.grad(out, leaves, go, retain_graph=True)

    def ours() -> tuple[Tensor, list[Tensor]]:
        out, _ = attention(q, k, v, causal=causal, temperature=temperature)
        return out, [q, k, v]

    def sdpa() -> tuple[Tensor, list[Tensor]]:
        return scaled_dot_product_attention(sharper, k, v, is_causal=causal), [sharper, k, v]

    def flash() -> tuple[Tensor, list[Tensor]]:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return sdpa()

    def truth() -> tuple[Tensor, ...]:
        make = _exact if device == "cpu" or t < 1024 else _long
        out, wide = make([q, k, v], temperature, causal, backward)
        return torch.autograd.grad(out, wide, g.to(out.dtype)) if backward else (out,)

    peers = {"sdpa": run(sdpa)}
    if device == "cuda":  # torch has FlashAttention-2 in it, and may choose another by itself
        peers["flash"] = run(flash)
    kind = f"{'causal' if causal else 'full'} {'backward' if backward else 'forward'}"
    name = f"attention {kind} B {b} T {t}" + ("" if device == "cpu" else f" H {h} D {d}")
    operations = b * h * t * t * d * (10 if backward else 4) // (2 if causal else 1)
    note = "" if device == "cpu" else f"{operations / 1e9:.0f} GFLOP"
    return Case(name, run(ours), peers, truth, 1e-4 if dtype == torch.float32 else 2e-2, note)


def _exact(
    inputs: list[Tensor], temperature: Tensor, causal: bool, backward: bool
) -> tuple[Tensor, list[Tensor]]:
    wide = [x.detach().double().requires_grad_(backward) for x in inputs]
    out, _ = reference(*wide, causal=causal, temperature=temperature.double())
    return out, wide


def _long(
    inputs: list[Tensor], temperature: Tensor, causal: bool, backward: bool
) -> tuple[Tensor, list[Tensor]]:
    """In float32, without all scores in memory."""
    q, k, v = (x.detach().float().requires_grad_(backward) for x in inputs)
    sharper = q / temperature.view(-1, 1, 1)
    return scaled_dot_product_attention(sharper, k, v, is_causal=causal), [q, k, v]


def _decoding(b: int, t: int) -> Case:
    made = torch.Generator().manual_seed(b * t)
    q = torch.randn(b, 8, 1, 64, generator=made)
    k, v = (torch.randn(b, 8, t, 64, generator=made) for _ in range(2))
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
