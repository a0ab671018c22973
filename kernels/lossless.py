"""Weights in fewer bytes, bit for bit: trained bfloat16 in about 70% of its size.

The exponents of trained weights crowd within a few neighbouring values. A tensor gets one
window of eight exponents; a value stores its place in the window in 3 bits, and sign and
mantissa as they are. The few values outside ("escapes") add their exponent and their place
within their block of 256. Every field has a fixed place, so decoding is arithmetic on whole
vectors, without a bit stream to follow.

Payload, for `blocks` blocks: raw (sign and 7 low mantissa bits: 256 bytes a block), codes
(96 bytes a block), rest (float16: 3 more mantissa bits, packed like codes; float32: 16 low
bits), counts of escapes (u16 a block), places and exponents of escapes (a byte each).
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from community.kernels.backend import kernels
from community.kernels.build import Program

MAGIC = b"CMLW"
VERSION = 1
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK = 256
WINDOW = 8
_PACKED = BLOCK * 3 // 8
_LANES = 64
_RAW, _CODED = 0, 1
# magic, version, dtype, method, dimensions, base, values, escapes, bytes of payload
_HEAD = struct.Struct("<4sBBBBBQQQ")
_SUM = struct.Struct("<I")
Words = NDArray[np.unsignedinteger]
Bytes = NDArray[np.uint8]


def compress(tensor: Tensor) -> bytes:
    """A CPU tensor of bfloat16, float16 or float32, of any shape, as bytes.

    Never more than a header longer than the tensor. Raises ValueError for anything else.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"compress takes bfloat16, float16 and float32, not {kind}")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise ValueError(f"compress takes dense CPU tensors, not {tensor.layout} {tensor.device}")
    if tensor.dim() > 255:
        raise ValueError(f"compress takes up to 255 dimensions, not {tensor.dim()}")
    flat = tensor.detach().contiguous().view(-1)
    plain = flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    base, escapes, coded = _encode(flat) if flat.numel() else (0, 0, plain)
    method = _CODED if len(coded) < len(plain) else _RAW
    payload = (coded if method == _CODED else plain).tobytes()
    place = DTYPES.index(tensor.dtype)
    counts = (
        (base, flat.numel(), escapes, len(payload))
        if method
        else (0, flat.numel(), 0, len(payload))
    )
    head = _HEAD.pack(MAGIC, VERSION, place, method, tensor.dim(), *counts)
    head += struct.pack(f"<{tensor.dim()}Q", *tensor.shape)
    return head + _SUM.pack(_checksum(head, np.frombuffer(payload, np.uint8))) + payload


def decompress(data: bytes | bytearray | memoryview, out: Tensor | None = None) -> Tensor:
    """The tensor that `compress` was given. Raises ValueError for any other bytes.

    `out`: a contiguous tensor of its shape and dtype to write into; memory that was in use
    before takes the numbers several times faster than fresh memory.
    """
    return _decompress(data, kernels("lossless"), out)


def reference(data: bytes | bytearray | memoryview) -> Tensor:
    """`decompress` without compiled code."""
    return _decompress(data, None)


def _decompress(
    data: bytes | bytearray | memoryview, run: Program | None, out: Tensor | None = None
) -> Tensor:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"decompress takes bytes, not {type(data).__name__}")
    view = memoryview(data).cast("B")
    if len(view) < _HEAD.size or bytes(view[:4]) != MAGIC:
        raise ValueError("these are not compressed weights: the first bytes are others")
    _, version, kind, method, dims, base, values, escapes, size = _HEAD.unpack_from(view)
    if version != VERSION:
        raise ValueError(f"weights compressed by version {version}; this one reads {VERSION}")
    start = _HEAD.size + 8 * dims + _SUM.size
    if len(view) != start + size:
        raise ValueError(f"compressed weights of {len(view)} bytes instead of {start + size}")
    head = bytes(view[: start - _SUM.size])
    shape = struct.unpack_from(f"<{dims}Q", head, _HEAD.size)
    payload = np.frombuffer(view[start:], np.uint8)
    (expected,) = _SUM.unpack_from(view, start - _SUM.size)
    if _checksum(head, payload, run) != expected:
        raise ValueError("damaged compressed weights: the checksum differs")
    if kind >= len(DTYPES) or method not in (_RAW, _CODED) or math.prod(shape) != values:
        raise ValueError("damaged compressed weights: the header contradicts itself")
    dtype = DTYPES[kind]
    if out is not None:
        _check_out(out, dtype, shape)
    if method == _RAW:
        if size != values * dtype.itemsize:
            raise ValueError("damaged compressed weights: the header contradicts itself")
        if not values:
            return torch.empty(shape, dtype=dtype) if out is None else out
        plain = torch.from_numpy(payload.copy()).view(dtype).view(shape)
        return plain if out is None else out.copy_(plain)
    # whole blocks are written, so only tensors of whole blocks are written in place
    direct = None if out is None or values % BLOCK else out.detach().view(-1)
    made = _decode(payload, dtype, base, values, escapes, run, direct).view(shape)
    return made if out is None else out if direct is not None and run else out.copy_(made)


def _check_out(out: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if out.dtype != dtype or out.shape != shape or out.device.type != "cpu":
        raise ValueError(
            f"compressed weights are {dtype} {shape}; out is {out.dtype} {tuple(out.shape)}"
        )
    if not out.is_contiguous() or out.requires_grad:
        raise ValueError("compressed weights: out must be contiguous and need no gradient")


# -- encoding --------------------------------------------------------------------------


def _split(flat: Tensor) -> tuple[Bytes, Bytes, Words | None]:
    """Exponents, sign with 7 bits of mantissa, and the rest of the mantissa."""
    if flat.dtype == torch.float32:
        wide = flat.view(torch.int32).numpy().view(np.uint32)
        top, rest = (wide >> 16).astype(np.uint16), wide.astype(np.uint16)
        return *_split_top(top), rest
    bits = flat.view(torch.int16).numpy().view(np.uint16)
    if flat.dtype == torch.bfloat16:
        return *_split_top(bits), None
    signs = (bits >> 8) & 0x80
    exponents = ((bits >> 10) & 31).astype(np.uint8)
    return exponents, (signs | (bits & 0x7F)).astype(np.uint8), ((bits >> 7) & 7).astype(np.uint8)


def _split_top(bits: NDArray[np.uint16]) -> tuple[Bytes, Bytes]:
    return (bits >> 7).astype(np.uint8), ((bits >> 8) & 0x80 | bits & 0x7F).astype(np.uint8)


def _encode(flat: Tensor) -> tuple[int, int, Bytes]:
    """(first exponent of the window, number of escapes, payload)."""
    exponents, raw, rest = _split(flat)
    counts = np.bincount(exponents, minlength=256 + WINDOW - 1)
    base = int(np.convolve(counts, np.ones(WINDOW, np.int64), "valid").argmax())
    codes = exponents - np.uint8(base)  # wraps round: also what lies below is far above
    (outside,) = np.nonzero(codes >= WINDOW)
    codes[outside] = 0
    per_block = np.bincount(outside // BLOCK, minlength=-(-len(raw) // BLOCK)).astype("<u2")
    parts = [_padded(raw), _pack(_padded(codes))]
    if rest is not None:
        packed = flat.dtype == torch.float16
        parts.append(_pack(_padded(rest.astype(np.uint8))) if packed else _padded(rest))
    places = (outside % BLOCK).astype(np.uint8)
    parts += [per_block, places, exponents[outside]]
    return base, len(outside), np.concatenate([p.view(np.uint8) for p in parts])


def _padded(values: Words) -> Words:
    return np.pad(values, (0, -len(values) % BLOCK))


def _pack(codes: Words) -> Bytes:
    """Blocks of 256 three-bit codes in 96 bytes: 64 with the low two bits, 32 with the high."""
    pairs = (codes.reshape(-1, 4, 64) & 3) << np.array([[0], [2], [4], [6]], np.uint8)
    highs = (codes.reshape(-1, 8, 32) >> 2) << np.arange(8, dtype=np.uint8)[:, None]
    both = [np.bitwise_or.reduce(part, axis=1) for part in (pairs, highs)]
    return np.concatenate(both, axis=1).astype(np.uint8).reshape(-1)


def _unpack(packed: Bytes) -> Bytes:
    blocks = packed.reshape(-1, 1, _PACKED)
    low = (blocks[:, :, :64] >> np.array([[0], [2], [4], [6]], np.uint8)) & 3
    high = (blocks[:, :, 64:] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return (low.reshape(-1) | high.reshape(-1) << 2).astype(np.uint8)


# -- decoding --------------------------------------------------------------------------


def _decode(
    payload: Bytes,
    dtype: torch.dtype,
    base: int,
    values: int,
    escapes: int,
    run: Program | None,
    out: Tensor | None,
) -> Tensor:
    blocks = -(-values // BLOCK)
    rest_size = {torch.float16: _PACKED, torch.float32: 2 * BLOCK}.get(dtype, 0)
    sizes = (BLOCK * blocks, _PACKED * blocks, rest_size * blocks, 2 * blocks, escapes, escapes)
    if sum(sizes) != len(payload) or blocks >= 2**31 or escapes >= 2**31:
        raise ValueError("damaged compressed weights: the header contradicts itself")
    raw, codes, rest, counts, places, exponents = _cut(payload, sizes)
    ends = np.cumsum(counts.copy().view("<u2"), dtype=np.int64)
    if ends[-1] != escapes:
        raise ValueError("damaged compressed weights: the number of escapes differs")
    if run is None:
        return _decode_plain(dtype, base, raw, codes, rest, ends, places, exponents)[:values]
    out = torch.empty(blocks * BLOCK, dtype=dtype) if out is None else out
    extra = () if dtype == torch.bfloat16 else (_tensor(rest),)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    places, exponents = places if escapes else raw[:1], exponents if escapes else raw[:1]
    fields = (_tensor(raw), _tensor(codes), *extra, torch.from_numpy(ends.astype(np.int32)))
    run(f"decode_{name}", *fields, _tensor(places), _tensor(exponents), out, base, items=blocks)
    return out[:values]


def _tensor(field: Bytes) -> Tensor:
    """The same memory, which kernels only read: torch warns of what numpy marks as read-only."""
    return torch.from_numpy(np.asarray(_Memory(field)))


class _Memory:
    """An array's memory without the mark that it must not be written."""

    def __init__(self, owner: Bytes) -> None:
        self.owner = owner
        interface = dict(owner.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _cut(payload: Bytes, sizes: tuple[int, ...]) -> Iterator[Bytes]:
    start = 0
    for size in sizes:
        yield payload[start : start + size]
        start += size


def _decode_plain(
    dtype: torch.dtype,
    base: int,
    raw: Bytes,
    codes: Bytes,
    rest: Bytes,
    ends: NDArray[np.int64],
    places: Bytes,
    exponents: Bytes,
) -> Tensor:
    found = _unpack(codes) + np.uint8(base)
    block = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    found[block * BLOCK + places] = exponents
    top = raw.astype(np.uint16)
    signs, mantissas, wide = (top & 0x80) << 8, top & 0x7F, found.astype(np.uint16)
    if dtype == torch.float16:
        bits = signs | (wide & 31) << 10 | _unpack(rest).astype(np.uint16) << 7 | mantissas
        return torch.from_numpy(bits.view(np.int16)).view(dtype)
    bits = signs | wide << 7 | mantissas
    if dtype == torch.bfloat16:
        return torch.from_numpy(bits.view(np.int16)).view(dtype)
    whole = bits.astype(np.uint32) << 16 | rest.copy().view("<u2")
    return torch.from_numpy(whole.view(np.int32)).view(dtype)


def _checksum(head: bytes, payload: Bytes, run: Program | None = None) -> int:
    """CRC-32 of the header, Fletcher's sums of the payload's rows of 64 words, and its tail."""
    rows = len(payload) // (4 * _LANES)
    whole, tail = payload[: rows * 4 * _LANES], payload[rows * 4 * _LANES :]
    if run is not None and 0 < rows < 2**31:
        made = torch.empty(2 * _LANES, dtype=torch.int32)
        run("checksum", _tensor(whole), made, rows, items=1)
        sums = made.numpy().astype("<i4").tobytes()
    else:
        words = np.frombuffer(whole.tobytes(), "<u4").reshape(-1, _LANES)
        weights = np.arange(rows, 0, -1, dtype=np.uint32)[:, None]
        pair = [part.sum(0, dtype=np.uint32) for part in (words, words * weights)]
        sums = np.concatenate(pair).astype("<u4").tobytes()
    return zlib.crc32(tail.tobytes(), zlib.crc32(sums, zlib.crc32(head)))
