"""Codecs: what goes in comes out again, and positions that mean digits of equal weight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import WORDS, chat_tokenizer

from community.agents.codec import CharacterCodec, ChatCodec, positions_of
from community.errors import CommunityError
from community.types import Idea

ALPHABET = "0123456789+-*="
PLAIN, RESTART = CharacterCodec(ALPHABET), CharacterCodec(ALPHABET, "restart")


def words(tokens: list[int]) -> str:
    return " ".join(WORDS[t] for t in tokens)


@given(st.text(ALPHABET, max_size=30))
def test_text_comes_back(text: str) -> None:
    tokens = PLAIN.answer(text)
    assert tokens == [*PLAIN.prompt(text), PLAIN.end]
    assert PLAIN.text(tokens) == PLAIN.text([PLAIN.pad, *tokens]) == text


@given(st.text(ALPHABET, min_size=1, max_size=30))
def test_its_tokenizer_agrees_with_it(text: str) -> None:
    assert PLAIN.tokenizer(text)["input_ids"] == PLAIN.prompt(text)
    assert PLAIN.tokenizer.decode(PLAIN.answer(text), skip_special_tokens=True) == text


def test_tokens_are_numbered_once() -> None:
    codec = CharacterCodec("abca")
    assert codec.size == 5  # three characters, padding and the end
    assert len({codec.pad, codec.end, *codec.prompt("abc")}) == 5
    assert codec.tokenizer.pad_token_id == codec.pad
    assert codec.tokenizer.eos_token_id == codec.end


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(CommunityError, match=r"the character '\^' is not in the alphabet"):
        PLAIN.prompt("2^3=")
    with pytest.raises(CommunityError):
        PLAIN.answer("5 ")


def test_plain_positions_are_the_models_own() -> None:
    assert PLAIN.positions(PLAIN.prompt("12+3=")) is None


def test_positions_restart_in_each_number() -> None:
    tokens = RESTART.prompt("123+45=") + RESTART.answer("861")
    #                                       1  2  3  +  4  5  =  8  6  1  end
    assert RESTART.positions(tokens) == [1, 2, 3, 4, 1, 2, 0, 1, 2, 3, 4]


def test_positions_of_an_answer_go_on_whatever_it_says() -> None:
    prompt, answer = RESTART.prompt("12-45="), RESTART.answer("-33")
    #                   1  2  -  4  5  =  -  3  3  end
    assert positions_of(RESTART, prompt + answer, 6) == [1, 2, 3, 1, 2, 0, 1, 2, 3, 4]
    assert positions_of(RESTART, prompt + answer, 6, 2) == [3, 4, 5, 3, 4, 2, 3, 4, 5, 6]
    assert positions_of(RESTART, answer, 0) == [1, 2, 3, 4]
    assert positions_of(PLAIN, prompt + answer, 6) is None


@given(st.integers(0, 10**6), st.sampled_from("+-*"), st.integers(0, 10**6), st.integers(0, 9))
def test_an_offset_moves_every_position(a: int, sign: str, b: int, offset: int) -> None:
    tokens = RESTART.prompt(f"{a}{sign}{b}=") + RESTART.answer("12")
    here, moved = RESTART.positions(tokens), RESTART.positions(tokens, offset)
    assert here is not None and moved == [p + offset for p in here]
    left, right = len(str(a)), len(str(b))
    assert here[:left] == list(range(1, left + 1))
    assert here[left] == left + 1  # an operator: one place behind the number that it ends
    assert here[left + 1 : left + 1 + right] == list(range(1, right + 1))
    assert here[left + 1 + right] == 0  # the answer begins at "="


def test_a_chat_prompt_holds_system_shots_and_question() -> None:
    codec = ChatCodec(chat_tokenizer(), "be brief", [("two", "three")])
    asked = words(codec.prompt("four"))
    assert asked == "system: be brief user: two assistant: three user: four assistant:"
    assert words(ChatCodec(chat_tokenizer()).prompt("four")) == "user: four assistant:"


def test_answers_that_were_read_stand_in_the_prompt() -> None:
    read = [Idea("t", "ada", "c", 1, 0, 0, "be two", "two"), Idea("t", "bo", "c", 1, 0, 0, "three")]
    asked = words(ChatCodec(chat_tokenizer()).prompt("four", read))
    assert asked == "user: four Others answered: - two - three assistant:"


def test_an_answer_ends_as_turns_do_in_the_template() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("}}\n", "}} <turn>\n")
    codec = ChatCodec(tokenizer)  # as those of Gemma and Phi-3, which end texts otherwise
    assert codec.end == turn != tokenizer.eos_token_id
    assert codec.answer("four")[-1] == turn and codec.text(codec.answer("four")) == "four"
    assert ChatCodec(chat_tokenizer()).end == tokenizer.eos_token_id


def test_a_chat_answer_ends_and_reads_back() -> None:
    codec = ChatCodec(chat_tokenizer())
    assert codec.answer("be brief")[-1] == codec.end == 1
    assert codec.text(codec.answer("be brief")) == "be brief"
    assert codec.pad == codec.end  # this tokenizer has no padding of its own
    assert codec.positions([1, 2]) is None


@pytest.mark.parametrize("refusal", ["raise_exception('no system')", "nope("])
def test_a_template_that_does_not_take_a_system_message(refusal: str) -> None:
    tokenizer = chat_tokenizer()
    own = "{% if messages[0].role == 'system' %}{{ " + refusal + " }}{% endif %}"
    tokenizer.chat_template = own + str(tokenizer.chat_template)
    with pytest.raises(CommunityError, match="its chat template says"):
        ChatCodec(tokenizer, system="be brief")
