"""Transformer members: what they save others can load, how they judge, revise and learn."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import computed_by
from tiny_models import ARENA, RESTART, SHAPE, WORDS, chat_model, lessons, member, sums
from transformers import AutoModelForCausalLM, AutoTokenizer

from community.agents.learning import Optimizer
from community.agents.pretrained import Adapter
from community.agents.transformer import Shape, TransformerAgent
from community.errors import CommunityError
from community.kernels.backend import backend
from community.types import Agent, Ballot, Decoding, Idea, Lesson, Request, Study, Task

TASK = sums(1)[0]
STUDY = Study(1, 0, tuple(lessons(8)), steps=2, batch=4)
FAST = Optimizer(lr=1e-2, muon=0.03)


def says(text: str, author: str = "bo", **options: Any) -> Idea:
    return Idea(TASK.id, author, "c", 1, 0, 0, text, **options)


def requests(tasks: list[Task], **options: Any) -> list[Request]:
    return [Request(task, 1, 0, 5, **options) for task in tasks]


def logprob(agent: TransformerAgent, text: str) -> float:
    """Of an answer to TASK, as the agent itself gives it for a text that it chose."""
    (idea,) = agent.propose([Request(TASK, 1, 1, 0, readings=(says(text),))])
    return idea.logprob


def test_it_is_an_agent_with_its_provenance_in_every_idea(tmp_path: Path) -> None:
    agent = member(temperature=0.8, top_p=0.9, max_tokens=5, samples=2)
    assert isinstance(agent, Agent)
    agent.save(tmp_path)
    swapped = ARENA.rephrase(TASK, 1)
    ideas = agent.propose([Request(TASK, 3, 0, 5, phrasings=(TASK.prompt, swapped))])
    assert [(i.sample, i.prompt) for i in ideas] == [(0, ""), (1, swapped)]
    for idea in ideas:
        assert (idea.task, idea.author, idea.round, idea.turn) == (TASK.id, "ada", 3, 0)
        assert idea.checkpoint == agent.checkpoint != ""
        assert 1 <= idea.tokens <= 5 and idea.logprob < 0 and idea.decoding == agent.decoding
    assert len(agent.propose(requests([TASK], samples=4))) == 4


def test_answers_do_not_depend_on_who_else_is_asked() -> None:
    tasks = sums(6) + sums(3, level=4)
    agent = member(temperature=1.0, max_tokens=5, batch=4)
    whole = agent.propose(requests(tasks))
    alone = [idea for r in requests(tasks)[::-1] for idea in agent.propose([r])][::-1]
    assert [i.text for i in whole] == [i.text for i in alone]
    other = agent.propose([Request(t, 1, 0, 6) for t in tasks])  # another seed
    assert [i.text for i in whole] != [i.text for i in other]


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["llama", "gpt2"])
def test_plain_transformers_load_a_checkpoint(shape: Shape, tmp_path: Path) -> None:
    agent = member(shape=shape)
    folder = tmp_path / agent.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = agent.codec.prompt(TASK.prompt)
    assert tokenizer(TASK.prompt)["input_ids"] == ids
    with torch.no_grad():
        theirs, ours = model(torch.tensor([ids])).logits, agent.model(torch.tensor([ids])).logits
    assert torch.equal(theirs, ours)
    assert [p.name for p in tmp_path.iterdir()] == [agent.checkpoint]  # nothing left behind


def test_a_checkpoint_is_named_by_its_content(tmp_path: Path) -> None:
    one, twin = member(), member()
    first = one.save(tmp_path / "a")
    assert first == one.checkpoint == one.save(tmp_path / "a") == twin.save(tmp_path / "b")
    assert first != member(shape=RESTART).save(tmp_path / "a")
    before = one.propose(requests([TASK]))[0]
    one.learn(STUDY)
    second = one.save(tmp_path / "a")
    assert second != first
    one.load(tmp_path / "a", first)
    assert one.propose(requests([TASK]))[0] == before
    assert one.save(tmp_path / "c") == first


def test_going_back_is_complete(tmp_path: Path) -> None:
    """What is learned after a load depends on the checkpoint and the study alone."""
    one, other = member(), member()
    start = one.save(tmp_path)
    one.learn(STUDY)
    one.load(tmp_path, start)
    assert one.learn(STUDY) == other.learn(STUDY)
    assert one.save(tmp_path) == other.save(tmp_path)


@pytest.mark.parametrize("harm", ["truncate", "change", "remove"])
def test_a_damaged_checkpoint_is_refused(harm: str, tmp_path: Path) -> None:
    agent = member()
    path = tmp_path / agent.save(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "truncate" else data[:-1] + b"x")
    state = "missing" if harm == "remove" else "damaged"
    with pytest.raises(CommunityError, match=f"of ada is {state}"):
        agent.load(tmp_path, agent.checkpoint)


@pytest.mark.parametrize(
    "shape",
    [Shape(width=32, depth=1, heads=2), Shape(width=16, depth=2, heads=2), RESTART],
    ids=["wider", "deeper", "another family"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_checkpoint_of_another_shape_is_refused(
    shape: Shape, turned: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine, theirs = (shape, SHAPE) if turned else (SHAPE, shape)
    foreign = member(shape=theirs).save(tmp_path)
    with pytest.raises(CommunityError, match=r"model.safetensors (does not fit|belongs to)"):
        member(shape=mine).load(tmp_path, foreign)
    assert capfd.readouterr() == ("", ""), "all that is said is in the one line"


def test_it_judges_by_what_it_finds_probable() -> None:
    agent = member()
    texts = ["15", "204", "33", "7"]
    probable = sorted(texts, key=lambda text: logprob(agent, text))
    pairs = tuple((says(a), says(b)) for a in texts for b in texts if a != b)
    verdicts = agent.judge([Ballot(TASK, 4, 0, pairs)])
    assert [(v.idea, v.other) for v in verdicts] == [(x.id, y.id) for x, y in pairs]
    for verdict, (x, y) in zip(verdicts, pairs, strict=True):
        assert verdict.score == float(probable.index(x.text) > probable.index(y.text))
        assert (verdict.judge, verdict.round, verdict.task) == ("ada", 4, TASK.id)
        assert 0 < verdict.confidence <= 1
    by_pair = {(v.idea, v.other): v for v in verdicts}
    for (one, other), verdict in by_pair.items():
        assert by_pair[other, one].score == 1 - verdict.score
        assert by_pair[other, one].confidence == verdict.confidence


def test_it_abstains_between_equal_texts() -> None:
    pair = (says("15", "bo"), says("15", "cy"))
    assert member().judge([Ballot(TASK, 1, 0, (pair,))]) == []


def test_it_revises_by_choosing_the_most_probable_answer() -> None:
    agent = member()
    read = tuple(says(text, author) for text, author in [("15", "ada"), ("204", "bo"), ("3", "cy")])
    read += (says("", "eve"), says("9", "dan", failure="broke down"))
    (idea,) = agent.propose([Request(TASK, 1, 1, 5, readings=read)])
    best = max(read[:3], key=lambda i: logprob(agent, i.text))
    assert (idea.text, idea.logprob) == (best.text, logprob(agent, best.text))
    assert idea.parents == tuple(i.id for i in read)  # it saw them all
    assert (idea.turn, idea.failure) == (1, "")
    assert idea.tokens == sum(len(i.text) + 1 for i in read[:3])  # scored, ends included
    (nothing,) = agent.propose([Request(TASK, 1, 1, 5, readings=read[3:])])
    assert (nothing.text, nothing.failure) == ("", "read nothing")


def test_it_learns_its_own_lessons_only() -> None:
    agent = member()
    stray = Lesson(1, "bo", TASK.id, "", TASK.prompt, "5", "test")
    for study in (Study(1, 0, (stray,)), Study(1, 0, tuple(lessons(1)), replay=(stray,))):
        with pytest.raises(CommunityError, match="ada was given a lesson for bo"):
            agent.learn(study)


def test_it_learns_sums_of_one_digit() -> None:
    shape = Shape(family="gpt2", width=32, depth=1, heads=2, positions="restart", spread=0.1)
    agent = member(shape=shape, max_tokens=3, optimizer=FAST)
    tasks = [ARENA.pose("train", 0, index, 1) for index in range(200)]
    taught = [Lesson(0, "ada", t.id, "", t.prompt, ARENA.solve(t), "test") for t in tasks]
    learned = agent.learn(Study(0, 1, tuple(taught), steps=250, batch=64))
    assert learned.loss is not None and learned.loss < 0.2
    ideas = agent.propose(requests(tasks))
    right = [i.text == ARENA.solve(t) for i, t in zip(ideas, tasks, strict=True)]
    assert sum(right) > 0.9 * len(right)


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["llama", "gpt2"])
@pytest.mark.skipif(backend()[0] == "reference", reason="no kernels here")
def test_the_kernels_answer_and_judge_like_torch(shape: Shape, tmp_path: Path) -> None:
    """Before and after learning, and back at an old checkpoint."""
    ours, theirs = (
        member(shape=shape, max_tokens=6, optimizer=FAST, generator=g) for g in ("kernels", "torch")
    )
    old, texts = ours.save(tmp_path), []

    def compare() -> None:
        for temperature in (0.0, 0.7):
            ours.decoding = theirs.decoding = Decoding(temperature, 0.9, 6)
            found, expected = ours.propose(requests(sums(8))), theirs.propose(requests(sums(8)))
            assert [i.text for i in found] == [i.text for i in expected]
            for a, b in zip(found, expected, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert logprob(ours, "12") == pytest.approx(logprob(theirs, "12"), abs=1e-4)
        texts.append(tuple(i.text for i in found))

    compare()
    for agent in (ours, theirs):
        agent.learn(STUDY)
    compare()
    for agent in (ours, theirs):
        agent.load(tmp_path, old)
    compare()
    assert texts[0] == texts[2] != texts[1]


def test_a_model_that_the_kernels_cannot_run() -> None:
    neox = Shape(family="gpt_neox", width=16, depth=1, heads=2)
    assert member(shape=neox).propose(requests([TASK]))
    with pytest.raises(CommunityError, match="GPTNeoXForCausalLM"):
        member(shape=neox, generator="kernels")


def test_kernels_that_are_switched_off() -> None:
    with computed_by("reference", "gpt"):
        assert member().propose(requests([TASK]))
        with pytest.raises(CommunityError, match="COMMUNITY_KERNELS=reference"):
            member(generator="kernels")


def test_what_cannot_be_made() -> None:
    with pytest.raises(CommunityError, match="either a shape or a model"):
        TransformerAgent("ada", 1, "01")
    with pytest.raises(CommunityError, match="either a shape or a model"):
        TransformerAgent("ada", 1, "01", shape=SHAPE, model="somewhere")
    with pytest.raises(CommunityError, match="needs an alphabet"):
        TransformerAgent("ada", 1, shape=SHAPE)
    with pytest.raises(CommunityError, match="no model of family 'llamma'"):
        member(shape=Shape(family="llamma"))
    for idle in ({"adapter": Adapter()}, {"system": "Be brief."}, {"shots": (("1+1=", "2"),)}):
        with pytest.raises(CommunityError, match="would do nothing in a member made from a shape"):
            member(**idle)
    with pytest.raises(CommunityError, match=r'judge = "reading" would do nothing'):
        member(judge="reading")


def test_members_differ_by_their_seed(tmp_path: Path) -> None:
    ids = {
        TransformerAgent("ada", seed, ARENA.alphabet, shape=SHAPE).save(tmp_path)
        for seed in (1, 1, 2)
    }
    assert len(ids) == 2


# -- pretrained chat models ----------------------------------------------------------------

QUESTION = Task("two three ?", "words", "", 1, "train", 0, 0)


def chatty(folder: Path, **options: Any) -> TransformerAgent:
    where = str(folder) if folder.exists() else chat_model(folder)
    return TransformerAgent("ada", 1, "", model=where, max_tokens=4, **options)


def test_a_chat_model_answers_reads_and_judges(tmp_path: Path) -> None:
    agent = chatty(tmp_path / "model", system="be brief", temperature=1.0, judge="reading")
    (first,) = agent.propose([Request(QUESTION, 1, 0, 5)])
    assert first.tokens and not first.failure
    one, other = (Idea(QUESTION.id, "bo", "c", 1, 0, 0, t, t) for t in ("two", "four"))
    again = agent.propose([Request(QUESTION, 1, 1, s, readings=(one, other)) for s in range(9)])
    assert {i.parents for i in again} == {(one.id, other.id)}
    assert len({i.text for i in again}) > 1  # it writes; it does not choose


def test_reading_both_orders_cancels_a_preferred_place(tmp_path: Path) -> None:
    agent = chatty(tmp_path / "model", judge="reading")
    one, other = (Idea(QUESTION.id, "bo", "c", 1, 0, 0, t, t) for t in ("two", "four"))
    here, there = agent.judge([Ballot(QUESTION, 1, 0, ((one, other), (other, one)))])
    assert here.score == 1 - there.score
    assert here.confidence == pytest.approx(there.confidence, abs=1e-6)


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed (extra: lora)")
def test_an_adapter_learns_saves_and_comes_back(tmp_path: Path) -> None:
    agent = chatty(tmp_path / "model", adapter=Adapter(rank=2, alpha=4), optimizer=FAST)
    start = agent.save(tmp_path / "checkpoints")
    before = {n: p.detach().clone() for n, p in agent.model.named_parameters()}
    lesson = Lesson(1, "ada", QUESTION.id, "", QUESTION.prompt, "four", "test")
    agent.learn(Study(1, 0, (lesson,), steps=30, batch=2))
    changed = {n for n, p in agent.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all("lora_" in name for name in changed)
    (idea,) = agent.propose([Request(QUESTION, 1, 0, 5)])
    assert idea.text == "four"

    end = agent.save(tmp_path / "checkpoints")
    assert end != start
    files = {p.name for p in (tmp_path / "checkpoints" / end).iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    other = chatty(tmp_path / "model", adapter=Adapter(rank=2, alpha=4))
    other.load(tmp_path / "checkpoints", end)
    assert other.propose([Request(QUESTION, 1, 0, 5)])[0].text == "four"
    other.load(tmp_path / "checkpoints", start)
    assert other.save(tmp_path / "elsewhere") == start


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed (extra: lora)")
@pytest.mark.parametrize(
    ("targets", "tied"),
    [("all-linear", False), (("q_proj", "embed_tokens"), True), (("lm_head", "v_proj"), True)],
    ids=str,
)
def test_the_kernels_answer_with_an_adapter(
    targets: str | tuple[str, ...], tied: bool, tmp_path: Path
) -> None:
    where = chat_model(tmp_path / "model", tied)
    asked = [Request(replace(QUESTION, prompt=f"two {word} ?"), 1, 0, 5) for word in WORDS[7:]]
    ideas = []
    for generator in ("kernels", "torch"):
        agent = chatty(
            Path(where),
            adapter=Adapter(rank=2, alpha=4, targets=targets),
            generator=generator,
            temperature=1.0,
            samples=3,
        )
        agent.propose(asked)  # with fresh adapters, which change nothing
        torch.manual_seed(1)
        for name, weight in agent.model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.5)
        ideas.append(agent.propose(asked))
    for ours, theirs in zip(*ideas, strict=True):
        assert ours.text == theirs.text
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed (extra: lora)")
@pytest.mark.parametrize(
    "other",
    [{"rank": 4}, {"alpha": 8}, {"targets": ("q_proj",)}, {"targets": "all-linear"}],
    ids=str,
)
def test_another_adapter_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    own = Adapter(rank=2, alpha=4, targets=("q_proj", "v_proj"))
    adapter = own.model_copy(update=other)
    foreign = chatty(tmp_path / "model", adapter=adapter).save(tmp_path / "checkpoints")
    with pytest.raises(CommunityError, match="an adapter of another"):
        chatty(tmp_path / "model", adapter=own).load(tmp_path / "checkpoints", foreign)


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed (extra: lora)")
@pytest.mark.parametrize("targets", ["nope", "[", ("nope",), (), ("norm",)], ids=str)
def test_an_adapter_for_what_is_no_matrix_of_the_model(
    targets: str | tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(CommunityError, match="no adapter can be made for targets") as caught:
        chatty(tmp_path / "model", adapter=Adapter(targets=targets))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lost", "reason"), [("chat_template", "no chat template"), ("eos_token", "no end token")]
)
def test_a_model_that_is_not_made_for_chat_is_refused(
    lost: str, reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    chat_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    setattr(tokenizer, lost, None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(CommunityError, match=f"cannot be asked: its tokenizer has {reason}"):
        chatty(folder)


@pytest.mark.parametrize("damage", ["config", "weights", "sizes"])
def test_a_model_that_cannot_be_read_is_one_line(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    chat_model(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "config":
        config.write_text('{"model_type": "nonsense"}')
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    else:
        config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": 32'))
    with pytest.raises(CommunityError) as caught:
        chatty(folder)
    assert "cannot load the model" in str(caught.value) and "\n" not in str(caught.value)
