"""Training on lessons: AdamW and Muon, loss on the answer only, a replay mix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from community.agents.codec import Codec, positions_of
from community.agents.muon import Muon
from community.config import Section
from community.errors import CommunityError
from community.kernels.backend import kernels
from community.kernels.train import Trainer
from community.kernels.weights import Unsupported
from community.types import Learned, Lesson, Study

IGNORED = -100
SMALL = 2**23  # weights that the kernels train: they are read again for every 128 tokens


class Optimizer(Section):
    """AdamW for everything; with `muon`, Muon (Jordan et al., 2024) for hidden matrices."""

    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    muon: float = Field(0.0, ge=0, description="learning rate of Muon; 0: AdamW for all")
    again: float = Field(1.0, gt=0, description="factor on both after the first lessons")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps, linear to 0")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    weight_decay: float = Field(0.0, ge=0, description="of both")


Rows = list[tuple[list[int], int]]
"""Tokenized lessons: prompt and answer tokens, length of the prompt."""


def tokenized(lessons: Sequence[Lesson], codec: Codec) -> tuple[Rows, tuple[str, ...]]:
    """Rows of lessons, and the ids of those that are left out.

    What a member of another alphabet said may hold characters that `codec` has no token for.
    Raises CommunityError for a first lesson, whose characters are the arena's own.
    """
    rows, left_out = [], []
    for lesson in lessons:
        try:
            prompt, answer = codec.prompt(lesson.prompt), codec.answer(lesson.text)
        except CommunityError:
            if not lesson.round:
                raise
            left_out.append(lesson.id)
        else:
            rows.append((prompt + answer, len(prompt)))
    return rows, tuple(left_out)


def train(
    model: PreTrainedModel,
    codec: Codec,
    study: Study,
    settings: Optimizer,
    offsets: int = 0,
) -> Learned:
    """Train `model` in place for `study.steps` steps of `study.batch` sequences.

    Half of a batch are new lessons where there is something to replay. With `offsets`,
    each sequence's restarting positions begin at a random one of 0 .. offsets - 1. The kernels
    train what they can on the processor up to SMALL weights, torch the rest, which takes .7 to 1
    of the time from 5 million on; the same rows, and the same weights up to rounding. Nothing is
    learned where all new lessons are left out.
    """
    rng = random.Random(study.seed)
    new, left_out = tokenized(study.lessons, codec)
    earlier, _ = tokenized(study.replay, codec)
    if left_out and not new:
        return Learned(0, None, 0, left_out)
    rows = new + earlier
    fresh, old = range(len(new)), range(len(new), len(rows))
    share = study.fresh if old else study.batch
    factor = settings.again if study.round else 1.0
    kind = _ByKernels if study.steps and _compiled(model) else _ByTorch
    try:
        student: _Student = kind(model, codec, rows, settings, factor)
    except Unsupported:
        student = _ByTorch(model, codec, rows, settings, factor)
    tokens, loss = 0, torch.zeros(())
    for step in range(study.steps):
        picked = rng.choices(fresh, k=share)
        picked += rng.choices(old, k=study.batch - share) if old else []
        begins = [rng.randrange(max(1, offsets)) for _ in picked]
        loss = student.step(picked, begins, _schedule(step, study.steps, settings))
        tokens += sum(len(rows[i][0]) for i in picked)
    student.end()
    last = round(float(loss), 6) if study.steps else None
    return Learned(study.steps, last, tokens, left_out)


# -- who computes ----------------------------------------------------------------------


class _Student(Protocol):
    """A model in training."""

    def step(self, picked: list[int], offsets: list[int], schedule: float) -> Tensor:
        """Learn these examples, at the rates times `schedule`. The loss before."""
        ...

    def end(self) -> None:
        """The model is as it was learned, and answers again."""
        ...


class _ByKernels:
    """Training by train.c. Raises Unsupported."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, rows: Rows, settings: Optimizer, factor: float
    ) -> None:
        program = kernels("train")
        assert program is not None
        places = [positions_of(codec, row, start) for row, start in rows]
        self.restart = bool(places) and places[0] is not None
        self.model, self.rates = model, (settings.lr * factor, settings.muon * factor)
        self.trainer = Trainer(
            model,
            program,
            [(row, max(1, start)) for row, start in rows],  # nothing foretells the first
            [p or [] for p in places] if self.restart else None,
            muon=[n for n, p in model.named_parameters() if settings.muon and _is_hidden(n, p)],
            clip=settings.clip,
            weight_decay=settings.weight_decay,
        )

    def step(self, picked: list[int], offsets: list[int], schedule: float) -> Tensor:
        rate, muon = (rate * schedule for rate in self.rates)
        offsets = offsets if self.restart else [0] * len(picked)
        return torch.tensor(self.trainer.step(picked, offsets, rate, muon))

    def end(self) -> None:
        self.trainer.write(self.model)
        self.model.eval()


class _ByTorch:
    """Training by torch, on any device."""

    def __init__(
        self, model: PreTrainedModel, codec: Codec, rows: Rows, settings: Optimizer, factor: float
    ) -> None:
        self.model, self.codec, self.rows, self.clip = model, codec, rows, settings.clip
        self.optimizers = _optimizers(model, settings, factor)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        model.train()

    def step(self, picked: list[int], offsets: list[int], schedule: float) -> Tensor:
        _set_rates(self.optimizers, self.rates, schedule)
        loss = _loss(self.model, self.codec, [self.rows[i] for i in picked], offsets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def end(self) -> None:
        self.model.eval()


def _compiled(model: PreTrainedModel) -> bool:
    small = model.num_parameters() <= SMALL
    return small and model.device.type == "cpu" and kernels("train") is not None


def _loss(model: PreTrainedModel, codec: Codec, rows: Rows, offsets: list[int]) -> Tensor:
    """Mean cross-entropy of the answers' tokens. Rows are padded on the right."""
    longest = max(len(row) for row, _ in rows)
    first = max(1, min(start for _, start in rows))  # that is foretold and learned
    tokens = torch.tensor([row + [codec.pad] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor(
        [[IGNORED] * start + row[start:] + [IGNORED] * (longest - len(row)) for row, start in rows]
    )
    places = [positions_of(codec, *row, o) for row, o in zip(rows, offsets, strict=True)]
    positions = None
    if places[0] is not None:
        positions = torch.tensor([(p or []) + [0] * (longest - len(p or [])) for p in places])
        positions = positions.to(model.device)
    logits = model(
        input_ids=tokens.to(model.device),
        position_ids=positions,
        # Causal attention never looks at the padding on the right, so nothing is masked;
        # the mask is given because transformers takes restarting positions for packing.
        attention_mask=torch.ones_like(tokens).to(model.device),
        use_cache=False,
        # places and not a number: of a slice of rows torch multiplies each with the whole head
        logits_to_keep=torch.arange(first - 1, longest, device=model.device),
    ).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, first:].flatten().to(model.device),
        ignore_index=IGNORED,
    )


def _optimizers(
    model: PreTrainedModel, settings: Optimizer, factor: float
) -> list[torch.optim.Optimizer]:
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (hidden if settings.muon and _is_hidden(name, p) else rest).append(p)
    decay = settings.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if rest:  # an adapter has nothing but hidden matrices
        rate = settings.lr * factor
        optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=decay))
    if hidden:
        rate = settings.muon * factor
        optimizers.append(Muon(hidden, lr=rate, weight_decay=decay))
    return optimizers


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Matrices inside the blocks; embeddings and the head are AdamW's."""
    return parameter.ndim == 2 and (".h." in name or ".layers." in name)


def _schedule(step: int, steps: int, settings: Optimizer) -> float:
    """Linear warm-up, flat, linear decay to 0."""
    rise = (step + 1) / max(1.0, settings.warmup * steps)
    fall = (steps - step) / max(1.0, settings.decay * steps)
    return min(1.0, rise, fall)


def _set_rates(
    optimizers: list[torch.optim.Optimizer], rates: list[list[float]], factor: float
) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
