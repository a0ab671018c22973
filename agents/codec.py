"""Text -> tokens and positions, and back: one codec for characters, one for chat models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from community.errors import CommunityError
from community.types import Idea

Positions = Literal["plain", "restart"]
PAD, END = "<pad>", "<end>"


class Codec(Protocol):
    """What a transformer agent needs to know of its text."""

    end: int
    pad: int
    tokenizer: PreTrainedTokenizerBase

    def prompt(self, text: str, readings: Sequence[Idea] = ()) -> list[int]:
        """The tokens that ask for an answer to `text`, with the answers read so far."""
        ...

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer, end token included."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens of an answer -> text, without the end token."""
        ...

    def positions(self, tokens: Sequence[int], offset: int = 0) -> list[int] | None:
        """Position of every token of a prompt, all of them `offset` further on; None for the
        model's own 0, 1, 2, ..."""
        ...


def positions_of(codec: Codec, row: Sequence[int], start: int, offset: int = 0) -> list[int] | None:
    """Positions of a prompt and its answer, which begins at place `start` of the row.

    An answer goes on by 1 a token, whatever it says: so it does while it is generated.
    """
    places = codec.positions(row[:start], offset)
    if places is None:
        return None
    last = places[-1] if places else offset
    return [*places, *range(last + 1, last + 1 + len(row) - start)]


class CharacterCodec:
    """One token a character.

    `positions = "restart"` counts the digits of each number anew from `offset` on, so that
    digits of equal weight share a position (Abacus embeddings, McLeish et al., arXiv
    2405.17399). Separators carry what the model cannot count: an operator stands one place
    behind the number it ends, "=" stands at `offset`, where the answer begins. An answer is
    one number: see `positions_of`.
    """

    def __init__(self, alphabet: str, positions: Positions = "plain") -> None:
        self._ids = {c: i for i, c in enumerate([PAD, END, *dict.fromkeys(alphabet)])}
        self._characters = {i: c for c, i in self._ids.items()}
        self.pad, self.end = self._ids[PAD], self._ids[END]
        self.restart = positions == "restart"
        self._opens = self._ids.get("=", -1)
        self._counts = {i for c, i in self._ids.items() if len(c) == 1 and c.isalnum()}
        self.tokenizer: PreTrainedTokenizerBase = self._tokenizer()

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return len(self._ids)

    def prompt(self, text: str, readings: Sequence[Idea] = ()) -> list[int]:
        """The characters of `text`; these models revise by choosing, not by reading."""
        return self._encode(text)

    def answer(self, text: str) -> list[int]:
        return [*self._encode(text), self.end]

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(self._characters[t] for t in tokens if t not in (self.pad, self.end))

    def positions(self, tokens: Sequence[int], offset: int = 0) -> list[int] | None:
        if not self.restart:
            return None
        places, at = [], offset
        for token in tokens:
            at = offset if token == self._opens else at + 1
            places.append(at)
            if token not in self._counts:
                at = offset
        return places

    def _encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise CommunityError(
                f"the character {error} is not in the alphabet of this arena; "
                "give the arena an alphabet that holds it"
            ) from error

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """The same vocabulary as a transformers tokenizer, saved beside the weights."""
        inner = Tokenizer(models.WordLevel(self._ids, unk_token=PAD))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=END)


class ChatCodec:
    """A pretrained tokenizer with its chat template.

    The system message fixes the answer's format before the first round; worked examples
    (`shots`) become earlier turns; answers that were read stand in the user's turn. Raises
    CommunityError if the template does not take them: no question could be asked.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str = "",
        shots: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.tokenizer = tokenizer
        turns = [("system", system)] if system else []
        for question, answer in shots:
            turns += [("user", question), ("assistant", answer)]
        self._before = [{"role": role, "content": text} for role, text in turns]
        try:
            self.prompt("?")
            self.end = self._end_of_turn()
        except TemplateError as error:
            raise CommunityError(
                f"the model cannot be asked: its chat template says {str(error)!r}; leave out "
                "system and shots where it takes none, or choose another model"
            ) from error
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end)

    def prompt(self, text: str, readings: Sequence[Idea] = ()) -> list[int]:
        if readings:
            answers = "\n".join(f"- {idea.answer or idea.text}" for idea in readings)
            text = f"{text}\nOthers answered:\n{answers}"
        messages = [*self._before, {"role": "user", "content": text}]
        return self._tokens(self._rendered(messages, True))

    def _end_of_turn(self) -> int:
        """The special token that the template puts behind an answer; the tokenizer's own end where
        it puts none. Gemma and Phi-3 end a turn by another token than a text."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        rest = self._rendered(turns, False).split("!")[1:]
        behind = self._tokens("".join(rest[-1:]).strip())
        token = self.tokenizer.added_tokens_decoder.get(behind[0]) if behind else None
        return behind[0] if token and token.special else int(self.tokenizer.eos_token_id)

    def _rendered(self, messages: list[dict[str, str]], asks: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False)
        )

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, text: str) -> list[int]:
        return [*self._tokens(text), self.end]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def positions(self, tokens: Sequence[int], offset: int = 0) -> list[int] | None:
        return None
