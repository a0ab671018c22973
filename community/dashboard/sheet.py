"""All that the ledger knows of one idea."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import select

from community.dashboard.kin import Kin, Taught, kin, step
from community.ledger import Ledger
from community.lineage import lineage
from community.rows import mapping_of
from community.tables import ideas, rankings, reliability
from community.types import Idea, Task


@dataclass(frozen=True)
class Said:
    """A verdict or a vote. The score is the share in the idea's favour."""

    judge: str
    kind: str  # "verdict", or "vote" for what a member answered itself
    score: float
    confidence: float | None
    reliability: float | None
    rival: str  # id of the idea that it was compared with
    other: str  # that idea's answer, or the one voted for


@dataclass(frozen=True)
class Sheet:
    """An idea, its task, its place, what was said of it and what it became."""

    idea: Idea
    task: Task
    kin: Kin
    said: tuple[Said, ...]
    lessons: tuple[Taught, ...]
    better: str  # id of the idea one place before; empty if there is none
    worse: str


def sheet(ledger: Ledger, id: str) -> Sheet:
    """What is known of the idea of an id. Raises CommunityError if there is none."""
    own, facts = kin(ledger, id), lineage(ledger, id).idea.facts
    idea = ledger.idea(id)
    rivals = [v["against"] for v in facts["verdicts"] if v["against"]]
    beside = (ideas.c.round == own.round, ideas.c.task == own.task)
    with ledger.reading() as conn:
        trust = select(reliability.c.judge, reliability.c.value)
        trusted = mapping_of(conn, trust.where(reliability.c.round == own.round))
        theirs = select(ideas.c.id, ideas.c.answer, ideas.c.text).where(*beside)
        answers = {
            rival: answer or text
            for rival, answer, text in conn.execute(theirs.where(ideas.c.id.in_(rivals)))
        }
        near = []
        for place in ((own.place or 0) - 1, (own.place or 0) + 1):
            at = select(ideas.c.id).join(rankings, rankings.c.idea == ideas.c.row)
            found = conn.scalar(at.where(*beside, rankings.c.place == place).limit(1))
            near.append(str(found or "") if own.place else "")
    ahead = step(ledger, own, back=False).items
    return Sheet(
        idea=idea,
        task=ledger.task(idea.task),
        kin=own,
        said=(
            *(_verdict(v, trusted, answers) for v in facts["verdicts"]),
            *(_vote(v) for v in facts["votes"]),
        ),
        lessons=tuple(item for item in ahead if isinstance(item, Taught)),
        better=near[0],
        worse=near[1],
    )


def _verdict(
    v: Mapping[str, object], trusted: Mapping[str, float], answers: Mapping[str, str]
) -> Said:
    judge, rival = str(v["judge"]), str(v["against"])
    score, confidence = float(str(v["score"])), float(str(v["confidence"]))
    other = answers.get(rival, "")
    return Said(judge, "verdict", score, confidence, trusted.get(judge), rival, other)


def _vote(v: Mapping[str, object]) -> Said:
    trust = v["reliability"]
    weight = None if trust is None else float(str(trust))
    return Said(str(v["judge"]), "vote", float(str(v["score"])), None, weight, "", str(v["answer"]))
