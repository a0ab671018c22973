"""Tiny transformers for tests: one layer, made in milliseconds, with sums to work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from community.agents.codec import CharacterCodec
from community.agents.transformer import Shape, TransformerAgent, made
from community.arenas.arithmetic import ArithmeticArena
from community.types import Lesson, Task

ARENA = ArithmeticArena()
SHAPE = Shape(width=16, depth=1, heads=2)
RESTART = Shape(family="gpt2", width=16, depth=1, heads=2, positions="restart", spread=0.1)
WORDS = ["<pad>", "<end>", "system:", "user:", "assistant:", "be", "brief", "two", "three", "four"]
WORDS += ["Others", "answered:", "-", "A:", "B:", "A", "B", "?"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny(shape: Shape = SHAPE) -> tuple[PreTrainedModel, CharacterCodec]:
    """A fresh model in double precision, and its codec.

    Weights are ten times the usual size, so that its untrained answers depend on the prompt,
    and the precision keeps the padding of a batch from showing in any digit.
    """
    torch.manual_seed(0)
    codec = CharacterCodec(ARENA.alphabet, shape.positions)
    model = made(shape, codec).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model.eval(), codec


def member(name: str = "ada", shape: Shape = SHAPE, **options: Any) -> TransformerAgent:
    """A member of one layer."""
    return TransformerAgent(name, 1, ARENA.alphabet, shape=shape, **options)


def sums(count: int, level: int = 2, start: int = 0) -> list[Task]:
    """Different tasks of the train split."""
    posed = (ARENA.pose("train", 3, start + i, level) for i in range(2 * count))
    return list({task.id: task for task in posed}.values())[:count]


def lessons(count: int, learner: str = "ada", level: int = 2, round: int = 0) -> list[Lesson]:
    """Right answers to as many sums."""
    return [
        Lesson(round, learner, t.id, "", t.prompt, ARENA.solve(t), "test")
        for t in sums(count, level)
    ]


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of `WORDS`, with a chat template."""
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chat_model(folder: Path, tied: bool = False) -> str:
    """A chat model as it comes from a hub: weights, tokenizer and template in a folder; its head
    may share its weights with the embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return str(folder)
