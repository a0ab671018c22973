"""Weights in fewer bytes, bit for bit: trained bfloat16 in about 68% of its size.

The exponents of trained weights crowd within a few neighbouring values. The four most frequent of
a tensor have codes of 2 or 3 bits, the next seven of 5 bits: two bits say which (0, 1, one of the
next two, one of the rest), kept as two planes of one bit a value; the bit that tells the next two
apart and the three bits of the rest follow in streams of their own. For 64 values the planes are
words of 64 bits, and PDEP deposits the streams' bits in the places of the values that they belong
to, so no code waits for the one before it. What is none of the eleven ("escapes") stands in full
at the end. Sign and mantissa are stored as they are.

Payload: table (16 bytes: the exponents by code), for each block of 2048 values three u16 (bits of
the second stream, codes of the third, escapes), planes (16 bytes for 64 values, the low bits
first), raw (sign and 7 low mantissa bits, a byte a value), rest (float16: 3 more mantissa bits,
96 bytes for 256 values; float32: 16 low bits), the second and third stream (for 64 values the
lowest bits of their codes, then the middle, then the high), places of escapes in their block (u16)
and their exponents (u8), 16 zeros that a word read at a stream's end may reach into. Values are
filled up with zeros to a multiple of 256.
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
from community.kernels.build import Program, zeros

MAGIC = b"CMLW"
VERSION = 2
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
UNIT = 256
BLOCK = 2048  # as in lossless.c
_PACKED = UNIT * 3 // 8
_TAIL = 16
_LANES = 64
_RAW, _CODED = 0, 1
# magic, version, dtype, method, dimensions, values, bytes of payload
_HEAD = struct.Struct("<4sBBBBQQ")
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
    coded = _encode(flat) if flat.numel() else plain
    method = _CODED if len(coded) < len(plain) else _RAW
    payload = (coded if method == _CODED else plain).tobytes()
    place = DTYPES.index(tensor.dtype)
    head = _HEAD.pack(MAGIC, VERSION, place, method, tensor.dim(), flat.numel(), len(payload))
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
    view = memoryview(data)
    view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    if len(view) < _HEAD.size or bytes(view[:4]) != MAGIC:
        raise ValueError("these are not compressed weights: the first bytes are others")
    _, version, kind, method, dims, values, size = _HEAD.unpack_from(view)
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
    fits = math.prod(shape) == values and math.prod(n or 1 for n in shape) < 2**63
    if kind >= len(DTYPES) or method not in (_RAW, _CODED) or not fits:
        raise ValueError("damaged compressed weights: the header contradicts itself")
    dtype = DTYPES[kind]
    if out is not None:
        _check_out(out, dtype, shape)
    if method == _RAW:
        if size != values * dtype.itemsize:
            raise ValueError("damaged compressed weights: the header contradicts itself")
        if not values:
            return zeros(*shape, dtype=dtype) if out is None else out
        plain = torch.from_numpy(payload.copy()).view(dtype).view(shape)
        return plain if out is None else out.copy_(plain)
    # whole units are written, so only tensors of whole units are written in place
    direct = None if out is None or values % UNIT else out.detach().view(-1)
    made = _decode(payload, dtype, values, run, direct).view(shape)
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


def _encode(flat: Tensor) -> Bytes:
    """The payload."""
    exponents, raw, rest = (x if x is None else _padded(x) for x in _split(flat))
    assert exponents is not None and raw is not None
    order = np.argsort(-np.bincount(exponents, minlength=256), kind="stable").astype(np.uint8)
    table = np.zeros(16, np.uint8)
    table[:4], table[8:15] = order[:4], order[4:11]
    codes = np.full(256, 15, np.uint8)
    codes[table[8:15]] = np.arange(8, 15)
    codes[table[:4]] = np.arange(4)
    code = codes[exponents]
    second, third, outside = (code & 14) == 2, code >= 8, code == 15
    planes = np.stack([_bits(x) for x in ((code == 1) | third, code >= 2)], axis=1)
    counts = np.stack([_sums(x, BLOCK) for x in (second, third, outside)], axis=1)
    (places,) = np.nonzero(outside)
    parts = [table, counts.astype("<u2"), planes, raw]
    if rest is not None:
        parts.append(_pack(rest.astype(np.uint8)) if flat.dtype == torch.float16 else rest)
    parts.append(np.packbits(code[second] & 1, bitorder="little"))
    parts.append(np.packbits(_three(code[third], _sums(third, 64)), bitorder="little"))
    parts += [(places % BLOCK).astype("<u2"), exponents[places], np.zeros(_TAIL, np.uint8)]
    return np.concatenate([p.reshape(-1).view(np.uint8) for p in parts])


def _bits(chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A word of bits for 64 values, the first lowest."""
    return np.packbits(chosen, bitorder="little").view("<u8")


def _sums(chosen: NDArray[np.bool_], size: int) -> NDArray[np.int64]:
    return np.add.reduceat(chosen, np.arange(0, len(chosen), size), dtype=np.int64)


def _three(codes: Bytes, counts: NDArray[np.int64]) -> Bytes:
    """The three low bits of codes: for each count all lowest bits, then the middle, the high."""
    bits = np.empty(3 * len(codes), np.uint8)
    for k, places in enumerate(_places(counts)):
        bits[places] = codes >> k & 1
    return bits


def _places(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Where `_three` puts the lowest, middle and high bits."""
    before = np.cumsum(counts) - counts
    place = np.arange(counts.sum()) + np.repeat(2 * before, counts)
    for k in range(3):
        yield place + k * np.repeat(counts, counts)


def _padded(values: Words) -> Words:
    return np.pad(values, (0, -len(values) % UNIT))


def _pack(codes: Words) -> Bytes:
    """Units of 256 three-bit codes in 96 bytes: 64 with the low two bits, 32 with the high."""
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
    payload: Bytes, dtype: torch.dtype, values: int, run: Program | None, out: Tensor | None
) -> Tensor:
    units, blocks = -(-values // UNIT), -(-values // BLOCK)
    if len(payload) < 16 + 6 * blocks or units >= 2**31:
        raise ValueError("damaged compressed weights: the header contradicts itself")
    starts = np.zeros((blocks + 1, 3), np.int64)
    counts = payload[16 : 16 + 6 * blocks].copy().view("<u2").reshape(-1, 3)
    np.cumsum(counts, axis=0, out=starts[1:])
    seconds, thirds, escapes = map(int, starts[-1])
    rest_size = {torch.float16: _PACKED, torch.float32: 2 * UNIT}.get(dtype, 0)
    sizes = (
        *(16, 6 * blocks, 64 * units, UNIT * units, rest_size * units),
        *(-(-seconds // 8), -(-3 * thirds // 8), 2 * escapes, escapes, _TAIL),
    )
    if sum(sizes) != len(payload):
        raise ValueError("damaged compressed weights: the header contradicts itself")
    table, _, planes, raw, rest, second, third, places, exponents, _ = _cut(payload, sizes)
    if run is None:
        code = _codes(planes, second, third, starts)
        found = table[code]
        block = np.repeat(np.arange(blocks), counts[:, 2])
        place = block * BLOCK + places.copy().view("<u2") % BLOCK
        found[place[place < len(found)]] = exponents[place < len(found)]
        return _joined(dtype, found, raw, rest)[:values]
    out = torch.empty(units * UNIT, dtype=dtype, device="cpu") if out is None else out
    extra = () if dtype == torch.bfloat16 else (_tensor(rest),)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    damaged = zeros(1, dtype=torch.int32)
    # an empty field has no memory: the table stands in, and nothing of it is read
    fields = [_tensor(x if len(x) else table) for x in (planes, second, third, table)]
    fields += [torch.from_numpy(starts), _tensor(raw), *extra]
    fields += [_tensor(x if len(x) else table) for x in (places, exponents)]
    run(f"decode_{name}", *fields, out, damaged, units, items=blocks)
    if damaged:
        raise ValueError("damaged compressed weights: the planes were counted differently")
    return out[:values]


def _codes(planes: Bytes, second: Bytes, third: Bytes, starts: NDArray[np.int64]) -> Bytes:
    """Codes of four bits, an index into the table, for every value. Raises ValueError."""
    pair = np.unpackbits(planes.reshape(-1, 2, 8), axis=2, bitorder="little")
    low, high = pair[:, 0].reshape(-1), pair[:, 1].reshape(-1)
    code = low + 2 * high
    chosen = [code == 2, code == 3]
    sums = np.stack([_sums(x, BLOCK) for x in chosen], axis=1)
    if not np.array_equal(sums, np.diff(starts[:, :2], axis=0)):
        raise ValueError("damaged compressed weights: the planes were counted differently")
    ones, threes = (np.unpackbits(x, bitorder="little") for x in (second, third))
    code[chosen[0]] += ones[: starts[-1, 0]]
    parts = [threes[p] << k for k, p in enumerate(_places(_sums(chosen[1], 64)))]
    code[chosen[1]] = 8 + np.bitwise_or.reduce(parts)
    return code


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


def _joined(dtype: torch.dtype, found: Bytes, raw: Bytes, rest: Bytes) -> Tensor:
    """Values from their exponents, sign with 7 bits of mantissa, and the rest of the mantissa."""
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
        made = zeros(2 * _LANES, dtype=torch.int32)
        run("checksum", _tensor(whole), made, rows, items=1)
        sums = made.numpy().astype("<i4").tobytes()
    else:
        words = np.frombuffer(whole.tobytes(), "<u4").reshape(-1, _LANES)
        weights = np.arange(rows, 0, -1, dtype=np.uint32)[:, None]
        pair = [part.sum(0, dtype=np.uint32) for part in (words, words * weights)]
        sums = np.concatenate(pair).astype("<u4").tobytes()
    return zlib.crc32(tail.tobytes(), zlib.crc32(sums, zlib.crc32(head)))
