"""GPT-2, Llama, Mistral and Qwen2 run by `gpt.cu`: whole answers in one launch on a GPU.

Weights are float32; those of a product lie row by row, (inputs, outputs), for every block of a team
the part with its outputs. Tests have the processor run the same source by OpenCL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from community.kernels.backend import simt
from community.kernels.build import Argument, SimtProgram, numbers, round_up, zeros
from community.kernels.cuda import fits
from community.kernels.gpt import LanguageModel, Memory
from community.kernels.text import Text
from community.kernels.weights import Layout, Part, Product, Ready, Unsupported, Vector, parts_of

THREADS, ROWS, AHEAD, WAYS = 128, 10, 4, 8  # as in gpt.cu
MODEL = 128  # floats, at least, that the struct Model takes
MOST = 2**30  # floats of memory at once: 4 GiB


@dataclass(frozen=True)
class Team:
    """The kernels of gpt.cu, and how they were compiled."""

    program: SimtProgram
    blocks: int = 1  # that answer together
    threads: int = THREADS  # of a block

    @property
    def held(self) -> int:
        """Floats that a block shares while it multiplies or attends: HELD in gpt.cu."""
        return max(4 * ROWS * self.threads, 2048)


def team_on(device: str) -> Team | None:
    """The kernels for models on "cuda", or on "cpu" to test them; None where others compute."""
    some = device == "cuda" and torch.cuda.is_available()
    blocks = together(torch.cuda.get_device_capability()) if some else 1
    program = simt("gpt", device, *flags(blocks))
    return None if program is None else Team(program, blocks)


def together(capability: tuple[int, int]) -> int:
    """Blocks of a team on a GPU: more than 8 do not run on every GPU that has thread block
    clusters, and before there were any, a block works alone."""
    return 8 if capability >= (9, 0) else 1


def flags(blocks: int) -> tuple[str, ...]:
    """What gpt.cu is compiled with for teams of so many blocks."""
    return (f"-DTEAM={blocks}",)


class GpuLanguageModel(LanguageModel):
    """A model of transformers on its device, called as `LanguageModel` is.

    Small models gain: a team of blocks answers a few prompts by itself, from the first token to
    the last, and the weights have to come from the GPU's cache again for every token.
    """

    halfway = False

    def __init__(self, model: nn.Module, team: Team) -> None:
        """`model`: a GPT-2, Llama, Mistral or Qwen2; `team`: the kernels for the device where its
        weights lie. Raises Unsupported."""
        self.team = team
        self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Take the model's weights as they are now. Raises Unsupported."""
        devices = {w.device for w in model.state_dict().values()}
        if len(devices) != 1:
            raise Unsupported(f"weights are on {len(devices)} devices")
        device = devices.pop()
        layout, parts, rotary = parts_of(model)
        if WAYS * (padded(layout.size, 1) + 4) > self.team.held:
            raise Unsupported(f"heads of size {layout.size}")
        if not fits(_shared(layout, self.team), device):
            raise Unsupported("a GPU with so little shared memory")
        flat = _flat(layout, parts, self.team.blocks)
        weights = torch.cat([x.to(device) for x in flat])
        if rotary:  # cosines and sines are made on the processor
            rotary = rotary[0].cpu(), rotary[1]
        # nothing is taken of a model that is refused: see LanguageModel.refresh
        self.device, self.layout, self.weights, self._rotary = device, layout, weights, rotary
        self._turns = zeros(0)
        self._places = self.layout.places if self.layout.learned else 0

    def _launch(self, kernel: str, text: Text, memory: Memory, *more: Tensor | int | float) -> None:
        """Run a kernel on blocks of rows, a team for each."""
        team = self.team
        lists = (text.tokens, text.where, text.starts, text.source, text.edges)
        sizes = numbers((memory.floats.shape[1], memory.ints.shape[1]), torch.int64)
        moved = [x.to(self.device) if isinstance(x, Tensor) else x for x in more]
        given: list[Argument] = [_shape(self.layout, self._places).to(self.device), self.weights]
        given += [self._turns, self.layout.epsilon, *(x.to(self.device) for x in lists)]
        given += [memory.floats, memory.ints, sizes.to(self.device), memory.slots, memory.span]
        room = _shared(self.layout, team)
        count = (len(text.edges) - 1) * team.blocks
        team.program(kernel, *given, *moved, blocks=count, threads=team.threads, room=room)
        for ours, made in zip(more, moved, strict=True):
            if isinstance(ours, Tensor) and isinstance(made, Tensor):
                ours.copy_(made)

    def _blocks(
        self, order: list[int], rows: Sequence[Sequence[int]], more: int
    ) -> Iterator[tuple[list[list[int]], Memory]]:
        """Rows in blocks, about as many for each team that the GPU runs at once, with memory for
        rows that grow by `more` tokens."""
        if not order:
            return
        span = max(map(len, rows)) + more
        teams = _teams(self.device, self.team.blocks)
        turns = math.ceil(len(order) / (teams * ROWS))
        slots = math.ceil(len(order) / (teams * turns))
        blocks = [order[a : a + slots] for a in range(0, len(order), slots)]
        floats, notes = _room(self.layout, span, slots, self.team.blocks)
        at_once = max(1, min(len(blocks), MOST // floats))
        memory = Memory(
            torch.empty(at_once, floats, dtype=torch.float32, device=self.device),
            torch.empty(at_once, notes, dtype=torch.int32, device=self.device),
            span,
            slots,
        )
        for n in range(0, len(blocks), at_once):
            yield blocks[n : n + at_once], memory


def _teams(device: torch.device, blocks: int) -> int:
    """How many teams of so many blocks run at a time, with two blocks on a processor. A team lies
    within one of the groups that a GPU's processors form, and not all of a group's may be left
    over: an H100 with 132 does not run 32 teams of 8, and the last of them would make all wait
    twice as long."""
    if device.type != "cuda":
        return 2
    count = 2 * int(torch.cuda.get_device_properties(device).multi_processor_count)
    return count if blocks == 1 else max(1, count // blocks * 7 // 8)


def _shape(layout: Layout, places: int) -> Tensor:
    """`shape` of gpt.cu, with as many positions as there are now."""
    one = (layout.layers, layout.width, layout.heads, layout.groups, layout.size, layout.hidden)
    two = (layout.words, places, layout.rms, layout.gated, layout.activation, layout.learned)
    return numbers((*one, *two, layout.places))


def _room(layout: Layout, span: int, slots: int, team: int) -> tuple[int, int]:
    """Floats and ints of memory that a team needs: sequences of at most `span` tokens."""
    size = padded(layout.size, 1)
    mix, kept = layout.heads * size, layout.groups * size
    width, hidden, words = (padded(n, team) for n in (layout.width, layout.hidden, layout.words))
    row = 2 * width + padded(mix + 2 * kept, team) + mix + hidden + words
    cache = 2 * slots * layout.layers * kept * span
    return ROWS * row + team * words + cache, team * layout.words


def _shared(layout: Layout, team: Team) -> int:
    """Floats of shared memory that a block needs."""
    ring = 16 * AHEAD * team.threads
    return MODEL + team.held + ring + team.threads + 13 * ROWS + ROWS * layout.heads


def padded(n: int, team: int) -> int:
    """The next multiple of four for every block of a team."""
    return round_up(n, 4 * team)


def _flat(layout: Layout, parts: list[Part], team: int) -> list[Tensor]:
    """Parts as gpt.cu reads them, rows of float32 padded with zeros. Raises Unsupported.

    What a norm multiplies by and adds, and what queries are multiplied by, goes into the weights
    of the product beside it.
    """
    found: list[Tensor] = []
    norm: list[Tensor] = []
    around = zip([None, *parts], parts, [*parts[1:], None], strict=False)
    for before, part, after in around:
        if isinstance(part, Product):
            weight, bias = _joined(layout, part, team)
            if norm:
                scale, shift = norm
                weight, bias, norm = scale[:, None] * weight, bias + shift @ weight, []
            if isinstance(after, Ready):
                factors = after.factors.to(bias.device).repeat_interleave(layout.size)
                scale = torch.cat([factors, bias.new_ones(len(bias) - len(factors))])
                weight, bias = weight * scale, bias * scale
                weight, bias = _spread(weight, layout.size), _spread(bias, layout.size)
            weight = _spread(weight.T, layout.size).T if isinstance(before, Ready) else weight
            found += _split(weight, bias, not isinstance(before, Ready), team)
        elif isinstance(part, Ready):
            if part.norms:
                raise Unsupported("queries and keys that are normalised")
            if part.turns == layout.learned:
                raise Unsupported("layers without positions")
        elif isinstance(part, Vector):
            norm.append(part.weight.float())
        else:
            found.append(_wider(part.weight.float(), team).reshape(-1))
    return found


def _joined(layout: Layout, part: Product, team: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of all pieces; outputs that are operands of their own take turns."""
    weights = [weight.float() for weight, _ in part.pieces]
    biases = [bias.float() for _, bias in part.pieces]
    if not part.apart:
        return torch.cat(weights, 1), torch.cat(biases)
    weights, biases = ([_wider(x, team) for x in some] for some in (weights, biases))
    return torch.stack(weights, -1).flatten(-2), torch.stack(biases, -1).flatten(-2)


def _spread(weight: Tensor, size: int) -> Tensor:
    """(..., heads * size) with every head padded to quads."""
    heads = weight.unflatten(-1, (-1, size))
    return nn.functional.pad(heads, (0, padded(size, 1) - size)).flatten(-2)


def _wider(weight: Tensor, team: int) -> Tensor:
    """(..., n) padded so that every block of a team has as many quads."""
    return nn.functional.pad(weight, (0, padded(weight.shape[-1], team) - weight.shape[-1]))


def _split(weight: Tensor, bias: Tensor, widen: bool, team: int) -> list[Tensor]:
    """(inputs, outputs) by blocks of the team, and the bias; inputs padded too, or not."""
    weight = _wider(_wider(weight, team).T, team).T if widen else _wider(weight, team)
    split = weight.unflatten(1, (team, -1)).transpose(0, 1)
    return [split.reshape(-1), _wider(bias, team)]
