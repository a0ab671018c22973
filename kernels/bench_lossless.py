"""Lossless weights against a plain copy of as many bytes, and zipnn where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from community.kernels.lossless import compress, decompress, reference


def run(tensor: Tensor | None = None, repeats: int = 7) -> list[dict[str, Any]]:
    """Rows of op, shape, peer, ratio (above 1: ours is faster) and size (of the original's).

    `tensor`: weights to compress; without, 16 million values spread like trained ones.
    """
    torch.manual_seed(0)
    wide = torch.randn(4096, 4096) * torch.rand(4096, 1) * 0.05 if tensor is None else tensor
    rows = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        weights = wide.to(dtype)
        data = compress(weights)
        same = weights.view(torch.uint8)
        for back in (decompress(data), reference(data)):
            if not torch.equal(back.view(torch.uint8), same):
                raise AssertionError(f"{dtype}: other bits came back")
        into = torch.empty_like(weights)
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda d=data, i=into: decompress(d, i),  # type: ignore[misc]
            "memcpy": lambda i=into, w=weights: i.copy_(w),  # type: ignore[misc]
        }
        if find_spec("zipnn") is not None and dtype == torch.bfloat16:
            codec = import_module("zipnn").ZipNN(bytearray_dtype="bfloat16", threads=1)
            packed = codec.compress(bytearray(same.view(-1).numpy().tobytes()))
            calls["zipnn"] = lambda c=codec, p=packed: c.decompress(p)  # type: ignore[misc]
        best = _interleaved(calls, repeats)
        for peer in [name for name in calls if name != "ours"]:
            rows.append(
                {
                    "op": f"lossless {str(dtype).removeprefix('torch.')}",
                    "shape": str(tuple(weights.shape)),
                    "peer": peer,
                    "ratio": best[peer] / best["ours"],
                    "size": len(data) / same.numel(),
                    "GB/s": same.numel() / best["ours"] / 1e9,
                }
            )
    return rows


def _interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least process CPU seconds of each call, taken in turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - started)
    return best
