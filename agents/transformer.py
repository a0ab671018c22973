"""Causal language models of transformers as members: made from a config, or pretrained.

A model made here reads characters and revises by choosing, among its own answer and those
it read, the one it finds most probable. A pretrained chat model reads the answers in its
prompt. Both are saved as safetensors that plain transformers (or peft) can load.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from community.agents.codec import CharacterCodec, ChatCodec, Codec
from community.agents.decoding import (
    Generated,
    generate,
    generate_by_kernels,
    score,
    score_by_kernels,
)
from community.agents.learning import Optimizer, train
from community.agents.pretrained import (
    Adapter,
    adapted,
    load_weights,
    merged,
    pretrained,
    weights_file,
)
from community.agents.shape import Shape, made
from community.aside import aside
from community.config import option
from community.errors import CommunityError
from community.kernels.backend import backend, kernels
from community.kernels.gpt import LanguageModel
from community.kernels.gpt_gpu import GpuLanguageModel, team_on
from community.kernels.weights import Unsupported
from community.models import find_model
from community.types import Ballot, Decoding, Idea, Learned, Request, Study, Verdict, seed_of

# A bar for every file written would tear the run's own display apart.
logging.disable_progress_bar()


class TransformerAgent:
    """A causal language model of transformers, from a shape or pretrained."""

    def __init__(
        self,
        name: str,
        seed: int,
        alphabet: str = "",
        *,
        shape: Annotated[Shape | None, option("of a model to be made")] = None,
        model: Annotated[str, option("hub id, folder, GGUF file or packaged:NAME")] = "",
        adapter: Annotated[Adapter | None, option("trained in place of the model")] = None,
        system: Annotated[str, option("system message of a chat model")] = "",
        shots: Annotated[
            tuple[tuple[str, str], ...],
            option("worked examples for a chat model: question, answer"),
        ] = (),
        temperature: Annotated[float, option("0: greedy", ge=0)] = 0.0,
        top_p: Annotated[float, option("of sampling", gt=0, le=1)] = 1.0,
        max_tokens: Annotated[int, option("of an answer", ge=1)] = 32,
        samples: Annotated[int, option("answers to a task", ge=1)] = 1,
        batch: Annotated[int, option("answers made at the same time", ge=1)] = 256,
        judge: Annotated[
            Literal["logprob", "reading"],
            option("by how probable it finds an answer, or by reading both"),
        ] = "logprob",
        optimizer: Annotated[Optimizer | None, option("of its learning")] = None,
        generator: Annotated[
            Literal["auto", "torch", "kernels"], option("who computes answers and scores")
        ] = "auto",
    ) -> None:
        """`generator` "kernels" is C or OpenCL in float32 (CUDA on a GPU), "auto" that on the
        processor for models it can run, and torch for the others. A pretrained model is computed
        in float32 on the processor, in bfloat16 by torch on a GPU.

        Raises CommunityError unless exactly one of `shape` and `model` is given, for a shape
        without an alphabet or with what only a model takes (adapter, system, shots, reading), and
        if the kernels are asked for and cannot run.
        """
        if (shape is None) == (not model):
            raise CommunityError(f"member {name}: give either a shape or a model")
        if shape:
            idle = {"adapter": adapter, "system": system, "shots": shots, "judge": judge}
            _refuse_what_models_take(idle)
        if shape and not alphabet:
            raise CommunityError(
                f"member {name} is made from a shape and needs an alphabet, which the arena does "
                "not have; give it one"
            )
        torch.set_num_threads(1)  # workers scale, threads do not
        torch.manual_seed(seed)
        self.name = name
        self.decoding = Decoding(temperature, top_p, max_tokens, samples)
        self.size = batch
        self.judging = judge
        self.optimizer = optimizer or Optimizer()
        self.offsets = shape.offsets if shape else 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.codec: Codec
        self.model: PreTrainedModel
        if shape is not None:
            codec = CharacterCodec(alphabet, shape.positions)
            self.codec, self.model = codec, made(shape, codec)
        else:
            self.model, tokenizer = pretrained(model, self.device)
            self.model = adapted(self.model, adapter) if adapter else self.model
            self.codec = ChatCodec(tokenizer, system, shots)
        torch.nn.Module.to(self.model, self.device)
        self.checkpoint = ""
        self._program: Any = None
        if generator != "torch" and self.device.type == "cpu":
            self._program = kernels("gpt")
        elif generator == "kernels":
            self._program = team_on("cuda")
        self._fast: LanguageModel | None = None
        self._seen: list[tuple[int, int]] | None = None  # the weights that it has
        self._refused = ""  # why they cannot run this model
        if generator == "kernels" and self._kernels() is None:
            why = self._refused or backend(self.device.type)[1]
            advice = 'say generator = "torch", or nothing'
            raise CommunityError(f"the kernels cannot run {name} ({why}); {advice}")

    @staticmethod
    def prepare(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
        """The options with `model` found, paths being relative to `base`, the recipe's folder.

        Called once before any member is made: it may download or convert. Raises
        CommunityError if there is no such model, and for a shape with what only a model takes.
        """
        if options.get("shape"):
            _refuse_what_models_take(options)
        model = options.get("model")
        return {**options, "model": find_model(model, base)} if model else dict(options)

    # -- answering ---------------------------------------------------------------------

    def propose(self, requests: Sequence[Request]) -> list[Idea]:
        """One idea per request and sample. Tokens count what was generated."""
        if isinstance(self.codec, CharacterCodec) and any(r.readings for r in requests):
            return self._choose(requests)
        asked = [
            (request, sample, _phrasing(request, sample))
            for request in requests
            for sample in range(request.samples or self.decoding.samples)
        ]
        prompts = [self.codec.prompt(text, request.readings) for request, _, text in asked]
        seeds = [seed_of(r.seed, self.name, r.task.id, r.turn, sample) for r, sample, _ in asked]
        answers = self._generate(prompts, seeds)
        return [
            self._idea(request, sample, text, answer)
            for (request, sample, text), answer in zip(asked, answers, strict=True)
        ]

    def _idea(self, request: Request, sample: int, prompt: str, answer: Generated) -> Idea:
        return Idea(
            task=request.task.id,
            author=self.name,
            checkpoint=self.checkpoint,
            round=request.round,
            turn=request.turn,
            sample=sample,
            text=self.codec.text(answer.tokens),
            parents=tuple(idea.id for idea in request.readings),
            prompt="" if prompt == request.task.prompt else prompt,
            tokens=len(answer.tokens),
            logprob=answer.logprob,
            decoding=self.decoding,
        )

    def _choose(self, requests: Sequence[Request]) -> list[Idea]:
        """The most probable of the answers read, one idea a request; scores cost its tokens."""
        options = [[i for i in r.readings if i.text and not i.failure] for r in requests]
        pairs = [(r.task.prompt, i.text) for r, o in zip(requests, options, strict=True) for i in o]
        scores = iter(self._score(pairs))
        chosen = []
        for request, read in zip(requests, options, strict=True):
            rated = [(next(scores), idea) for idea in read]
            best, idea = max(rated, key=lambda x: x[0], default=(-math.inf, None))
            text = idea.text if idea else ""
            tokens = sum(len(self.codec.answer(i.text)) for i in read)
            answer = Generated(self.codec.answer(text), best if idea else 0.0)
            made_idea = self._idea(request, 0, request.task.prompt, answer)
            chosen.append(replace(made_idea, tokens=tokens, failure="" if idea else "read nothing"))
        return chosen

    # -- judging -----------------------------------------------------------------------

    def judge(self, ballots: Sequence[Ballot]) -> list[Verdict]:
        """One verdict a pair: the answer this model finds more probable, or reads as better.

        Confidence is how far the two are apart, from 0 (undecided) to 1.
        """
        pairs = [(b, x, y) for b in ballots for x, y in b.pairs]
        gaps = self._read(pairs) if self.judging == "reading" else self._compare(pairs)
        return [
            Verdict(
                round=ballot.round,
                task=ballot.task.id,
                judge=self.name,
                idea=x.id,
                other=y.id,
                score=float(gap > 0),
                confidence=round(math.tanh(abs(gap) / 2), 6),
            )
            for (ballot, x, y), gap in zip(pairs, gaps, strict=True)
            if gap != 0
        ]

    def _compare(self, pairs: Sequence[tuple[Ballot, Idea, Idea]]) -> list[float]:
        """log P(first) - log P(second) of each pair; every text is scored once."""
        wanted = {(b.task.prompt, i.text): 0.0 for b, x, y in pairs for i in (x, y)}
        known = dict(zip(wanted, self._score(list(wanted)), strict=True))
        return [known[b.task.prompt, x.text] - known[b.task.prompt, y.text] for b, x, y in pairs]

    def _read(self, pairs: Sequence[tuple[Ballot, Idea, Idea]]) -> list[float]:
        """Log-odds of "A" over "B", averaged over both orders, since models prefer a place."""
        asked = []
        for ballot, x, y in pairs:
            for first, second in ((x, y), (y, x)):
                question = (
                    f"{ballot.task.prompt}\n\nA: {first.text}\nB: {second.text}\n\n"
                    "Which answer is right, A or B?"
                )
                asked += [(question, "A"), (question, "B")]
        s = self._score(asked)
        return [(s[i] - s[i + 1] + s[i + 3] - s[i + 2]) / 2 for i in range(0, len(s), 4)]

    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        tokens = [(self.codec.prompt(p), self.codec.answer(a)) for p, a in pairs]
        fast = self._kernels()
        if fast is None:
            return score(self.model, self.codec, tokens, self.size)
        return score_by_kernels(fast, self.codec, tokens)

    # -- computing ---------------------------------------------------------------------

    def _generate(self, prompts: list[list[int]], seeds: list[int]) -> list[Generated]:
        fast = self._kernels()
        if fast is None:
            return generate(self.model, self.codec, prompts, seeds, self.decoding, self.size)
        return generate_by_kernels(fast, self.codec, prompts, seeds, self.decoding)

    def _kernels(self) -> LanguageModel | None:
        """The kernels with the weights as they are now; None where torch is to compute."""
        if self._program is not None:
            try:
                return self._current(self._program)
            except Unsupported as error:
                self._program, self._refused = None, str(error)
        return None

    def _current(self, program: Any) -> LanguageModel:
        weights = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if self._fast is None:
            kind = LanguageModel if self.device.type == "cpu" else GpuLanguageModel
            self._fast = kind(merged(self.model), program)
        elif self._seen != weights:
            self._fast.refresh(merged(self.model))
        self._seen = weights
        return self._fast

    # -- learning ----------------------------------------------------------------------

    def learn(self, study: Study) -> Learned:
        """Train on the lessons. Raises CommunityError for a lesson that names another."""
        stray = {x.learner for x in (*study.lessons, *study.replay)} - {self.name}
        if stray:
            raise CommunityError(
                f"{self.name} was given a lesson for {min(stray)}; "
                "hand each lesson to the learner that it names"
            )
        torch.manual_seed(study.seed % 2**32)
        self._seen = None
        return train(self.model, self.codec, study, self.optimizer, self.offsets)

    # -- checkpoints -------------------------------------------------------------------

    def save(self, folder: Path) -> str:
        """Write weights, config and tokenizer to `folder / id`, id the hash of the weights."""
        with aside(folder / "checkpoint") as part:
            self.model.save_pretrained(part)
            self.codec.tokenizer.save_pretrained(part)
            self.checkpoint = _digest(weights_file(part))
            if not (folder / self.checkpoint).exists():
                part.rename(folder / self.checkpoint)
        return self.checkpoint

    def load(self, folder: Path, checkpoint: str) -> None:
        """Take the weights of a checkpoint. Raises CommunityError if they are not intact."""
        path = weights_file(folder / checkpoint)
        if not path.is_file() or _digest(path) != checkpoint:
            state = "damaged" if path.is_file() else "missing"
            raise CommunityError(
                f"checkpoint {checkpoint} of {self.name} is {state} ({path}); "
                "restore the file or start the run anew"
            )
        self.adopt(folder / checkpoint)

    def adopt(self, folder: Path) -> str:
        """Take weights that transformers, peft or TRL saved in a folder; gives their id.

        Raises CommunityError if there are none, or those of another shape.
        """
        path = weights_file(folder)
        if not path.is_file():
            raise CommunityError(
                f"there are no weights in {folder}; name a folder with a model.safetensors or "
                "an adapter_model.safetensors"
            )
        load_weights(self.model, path)
        self._seen = None
        self.checkpoint = _digest(path)
        return self.checkpoint


def _refuse_what_models_take(options: Mapping[str, Any]) -> None:
    """Raises CommunityError for options that a member made from a shape would not look at."""
    idle = [name for name in ("adapter", "system", "shots") if options.get(name)]
    idle += ['judge = "reading"'] * (options.get("judge") == "reading")
    if idle:
        raise CommunityError(
            f"{' and '.join(idle)} would do nothing in a member made from a shape, only in one "
            "with a model; leave it out"
        )


def _phrasing(request: Request, sample: int) -> str:
    words = request.phrasings
    return words[sample % len(words)] if words else request.task.prompt


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]
