"""Training steps against torch: gradients, clipping, AdamW and Muon of a batch of 64 rows.

The rows are sums as the adders of `runs/adders.toml` learn them, half of 5 to 12 digits, half of
1 to 4; the models are theirs. Torch pads the rows, runs the models of transformers eagerly and
steps as `agents/learning.py` does.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from community.kernels.backend import kernels
from community.kernels.timing import Case
from community.kernels.train import Trainer

PAD, END, PLUS, EQUALS, DIGIT = 0, 1, 2, 3, 4  # tokens; digits follow
WORDS, PLACES, BATCH, RATE, MUON = 16, 64, 64, 6e-3, 9e-3
MODELS = {  # width 64, two heads: family, layers, hidden
    "gpt2 2 layers, hidden 256": ("gpt2", 2, 256),
    "gpt2 3 layers, hidden 128": ("gpt2", 3, 128),
    "llama 2 layers, hidden 128": ("llama", 2, 128),
    "llama 2 layers, hidden 192": ("llama", 2, 192),
}


def cases(device: str, quick: bool) -> Iterator[Case]:
    """What is compared is the loss and the weights after one step from the start."""
    program = kernels("train")
    if device != "cpu" or program is None:
        return
    rows, positions = sums(8 if quick else BATCH)
    picked, offsets = [*range(len(rows))], [0] * len(rows)
    for name in [*MODELS][: 1 if quick else None]:
        model = made(*MODELS[name])
        hidden = [n for n, p in model.named_parameters() if _is_hidden(n, p)]
        exact = Eager(copy.deepcopy(model).double(), rows, positions)
        theirs = Eager(copy.deepcopy(model), rows, positions)
        trainer = Trainer(model, program, rows, positions, muon=hidden)

        def ours(trainer: Trainer = trainer) -> tuple[Tensor, ...]:
            return torch.tensor(trainer.step(picked, offsets, RATE, MUON)), trainer.weights

        def truth(exact: Eager = exact) -> tuple[Tensor, ...]:
            loss = exact.step()
            return loss, Trainer(copy.deepcopy(exact.model).float(), program, rows).weights

        yield Case(name, ours, {"torch": theirs.step}, truth)


class Eager:
    """Training by torch."""

    def __init__(
        self, model: nn.Module, rows: list[tuple[list[int], int]], positions: list[list[int]]
    ) -> None:
        self.model, self.rows, self.positions = model.train(), rows, positions
        named = dict(model.named_parameters())
        hidden = [p for n, p in named.items() if _is_hidden(n, p)]
        rest = [p for n, p in named.items() if not _is_hidden(n, p)]
        self.adam = torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0)
        self.alike: dict[torch.Size, list[nn.Parameter]] = {}
        for p in hidden:
            self.alike.setdefault(p.shape, []).append(p)
        self.means = {p: torch.zeros_like(p) for p in hidden}

    def step(self) -> Tensor:
        """The loss before the step."""
        longest = max(len(row) for row, _ in self.rows)
        tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row, _ in self.rows])
        where = torch.tensor([p + [0] * (longest - len(p)) for p in self.positions])
        labels = torch.tensor(
            [[-100] * n + row[n:] + [-100] * (longest - len(row)) for row, n in self.rows]
        )
        logits = self.model(
            input_ids=tokens,
            position_ids=where,
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
        ).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self._muon()
        self.model.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def _muon(self) -> None:
        """Muon in float32, the matrices of one shape at a time, as in `agents/muon.py`."""
        for (rows, columns), matrices in self.alike.items():
            updates = []
            for p in matrices:
                assert p.grad is not None
                self.means[p].lerp_(p.grad, 0.05)
                updates.append(p.grad.lerp(self.means[p], 0.95))
            x = torch.stack(updates)
            x = x.mT if rows > columns else x
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            for p, update in zip(matrices, x.mT if rows > columns else x, strict=True):
                p.add_(update, alpha=-MUON * max(1.0, rows / columns) ** 0.5)


def made(family: str, layers: int, hidden: int) -> nn.Module:
    """A member of the adders. Machines without transformers have other benches to run."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    shape: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 64, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": layers, "max_position_embeddings": PLACES}
    shape |= {"tie_word_embeddings": True}
    if family == "llama":
        config = transformers.LlamaConfig(**shape, **ids, intermediate_size=hidden)
        llama: nn.Module = transformers.LlamaForCausalLM(config)
        return llama
    still: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    relu = {"n_inner": hidden, "activation_function": "relu"}
    config = transformers.GPT2Config(**shape, **ids, **still, **relu)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    nn.init.normal_(model.get_parameter("transformer.wpe.weight"), std=0.1)
    return model


def sums(count: int) -> tuple[list[tuple[list[int], int]], list[list[int]]]:
    """(tokens, length of the prompt) of a + b = c and END, digits from the least on, and their
    positions, which count each number's digits anew."""
    rng = random.Random(0)
    rows, positions = [], []
    for n in range(count):
        digits = 5 + n // 2 % 8 if n % 2 else 1 + n // 2 % 4
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        x, y, z = (
            [DIGIT + int(c) for c in f"{value:0{width}}"[::-1]]
            for value, width in ((a, digits), (b, digits), (a + b, digits + 1))
        )
        prompt = [*x, PLUS, *y, EQUALS]
        rows.append((prompt + z + [END], len(prompt)))
        positions.append([*range(1, digits + 2), *range(1, digits + 1), *range(digits + 3)])
    return rows, positions


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Matrices inside the layers are Muon's."""
    return parameter.ndim == 2 and (".h." in name or ".layers." in name)
