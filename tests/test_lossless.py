"""Lossless weights: every bit comes back, and no bytes crash the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from torch import Tensor

from community.kernels import lossless

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
dtypes = st.sampled_from(lossless.DTYPES)
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(INTEGERS[tensor.dtype]).view(tensor.shape)


def weights(shape: tuple[int, ...], dtype: torch.dtype, seed: int, odd: int = 0) -> Tensor:
    """Like trained weights, with `odd` values of arbitrary bits."""
    torch.manual_seed(seed)
    made = (torch.randn(shape) * 0.05).to(dtype)
    if made.numel():
        places = torch.randint(made.numel(), (odd,))
        anything = torch.randint(-(2**15), 2**15, (odd,), dtype=torch.int32)
        flat = bits(made).view(-1)
        flat[places] = anything.mul(1 if dtype != torch.float32 else 2**16).to(flat.dtype)
    return made


@settings(max_examples=60)
@given(shapes, dtypes, st.integers(0, 99), st.integers(0, 60))
def test_every_bit_comes_back(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, odd: int
) -> None:
    tensor = weights(shape, dtype, seed, odd)
    data = lossless.compress(tensor)
    for back in (lossless.decompress(data), lossless.reference(data)):
        assert back.dtype == dtype and back.shape == tensor.shape
        assert torch.equal(bits(back), bits(tensor))
    assert len(data) <= tensor.numel() * dtype.itemsize + 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["c", "opencl"])
def test_every_number_there_is(dtype: torch.dtype, backend: str) -> None:
    """NaN with every payload, both zeros, infinities, subnormals; among many ordinary values."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    tensor = torch.cat([every, weights((1_000_000,), dtype, 0)])
    data = lossless.compress(tensor)
    assert len(data) < tensor.numel() * 2
    assert torch.equal(
        bits(lossless._decompress(data, compiled("lossless", backend))), bits(tensor)
    )


@pytest.mark.parametrize("dtype", lossless.DTYPES)
@pytest.mark.parametrize("backend", ["c", "opencl"])
def test_the_backends_agree(dtype: torch.dtype, backend: str) -> None:
    tensor = weights((1000, 77), dtype, 1, odd=3000)
    data = lossless.compress(tensor)
    assert torch.equal(
        bits(lossless._decompress(data, compiled("lossless", backend))), bits(tensor)
    )
    assert torch.equal(bits(lossless.reference(data)), bits(tensor))


def test_views_and_gradients() -> None:
    tensor = weights((64, 96), torch.float32, 2).requires_grad_()
    back = lossless.decompress(lossless.compress(tensor.t()[3:]))
    assert torch.equal(back, tensor.t()[3:])
    back[0] = 0  # its memory is its own


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 0.69), (torch.float16, 0.88), (torch.float32, 0.85)]
)
def test_sizes(dtype: torch.dtype, most: float) -> None:
    tensor = weights((512, 512), dtype, 3)
    assert len(lossless.compress(tensor)) <= most * tensor.numel() * dtype.itemsize


DATA = {dtype: lossless.compress(weights((700,), dtype, 4, odd=9)) for dtype in lossless.DTYPES}


@settings(max_examples=300)
@given(dtypes, st.data())
def test_damaged_bytes_are_refused(dtype: torch.dtype, draw: st.DataObject) -> None:
    data = bytearray(DATA[dtype])
    if draw.draw(st.booleans()):
        data = data[: draw.draw(st.integers(0, len(data) - 1))]
    else:
        place = draw.draw(st.integers(0, len(data) - 1))
        data[place] ^= draw.draw(st.integers(1, 255))
    for read in (lossless.decompress, lossless.reference):
        with pytest.raises(ValueError, match="compressed"):
            read(data)


@settings(max_examples=200)
@given(dtypes, st.data())
def test_damage_with_a_right_checksum_does_no_harm(dtype: torch.dtype, draw: st.DataObject) -> None:
    """Whoever forges the checksum gets other numbers or a ValueError, never memory of ours."""
    data = bytearray(DATA[dtype])
    start = lossless._HEAD.size + 8
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(data) - 1))
        data[place] = draw.draw(st.integers(0, 255))
    payload = np.frombuffer(bytes(data[start + 4 :]), np.uint8)
    data[start : start + 4] = lossless._SUM.pack(lossless._checksum(bytes(data[:start]), payload))
    results = []
    for read in (lossless.decompress, lossless.reference):
        try:
            results.append(bits(read(data)))
        except ValueError:
            results.append(None)
    assert (results[0] is None) == (results[1] is None)
    if results[0] is not None and results[1] is not None:
        assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("shape", [(0, 2**63), (0, 2**40, 2**40), (2**64 - 1, 0)])
def test_empty_shapes_beyond_torch_are_refused(shape: tuple[int, ...]) -> None:
    head = lossless._HEAD.pack(lossless.MAGIC, lossless.VERSION, 0, lossless._RAW, len(shape), 0, 0)
    head += np.array(shape, "<u8").tobytes()
    data = head + lossless._SUM.pack(lossless._checksum(head, np.zeros(0, np.uint8)))
    with pytest.raises(ValueError, match="contradicts"):
        lossless.decompress(data)


def test_bytes_that_lie_apart() -> None:
    weights = torch.randn(3000)
    apart = np.repeat(np.frombuffer(lossless.compress(weights), np.uint8), 2)
    assert torch.equal(lossless.decompress(memoryview(apart.tobytes())[::2]), weights)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    for start in (b"", lossless.MAGIC, lossless.MAGIC + b"\x01"):
        with pytest.raises(ValueError, match="compressed"):
            lossless.decompress(start + data)


@pytest.mark.parametrize("wrong", [torch.arange(3), torch.zeros(2, dtype=torch.float64), 1.0, None])
def test_other_things_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="compress takes"):
        lossless.compress(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decompress takes"):
        lossless.decompress(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(512,), (3, 100), (0,)])
def test_into_given_memory(shape: tuple[int, ...]) -> None:
    tensor = weights(shape, torch.bfloat16, 5, odd=3)
    out = torch.zeros(shape, dtype=torch.bfloat16)
    assert lossless.decompress(lossless.compress(tensor), out) is out
    assert torch.equal(bits(out), bits(tensor))


@pytest.mark.parametrize(
    "out",
    [torch.zeros(6), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(12).bfloat16()[::2]],
)
def test_memory_that_does_not_fit_is_refused(out: Tensor) -> None:
    with pytest.raises(ValueError, match="out"):
        lossless.decompress(lossless.compress(torch.zeros(6).bfloat16()), out)


def test_meta_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="dense CPU"):
        lossless.compress(torch.zeros(2, device="meta"))


SANITIZED = """
import test_lossless as t
program = CProgram("lossless", flags)
for shape in ((1,), (255,), (256,), (1000, 7)):
    for dtype in t.lossless.DTYPES:
        tensor = t.weights(shape, dtype, 0, odd=9)
        data = t.lossless.compress(tensor)
        back = t.lossless._decompress(data, program)
        assert torch.equal(t.bits(back), t.bits(tensor))
        into = torch.empty_like(tensor)
        assert torch.equal(t.bits(t.lossless._decompress(data, program, into)), t.bits(tensor))
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
