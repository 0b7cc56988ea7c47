"""What a rendered domain is made of: scenes with exact facts, questions with computed answers, edits.

A `Scene` is a frozen record of plain fields. A `Kind` knows how to sample one, draw it, list its facts and
ask about it. A question holds `answer_of`, which reads the answer off any scene of its kind, and `edit`,
which returns a scene that differs in one decisive fact so that the same query has another known answer. A
`Domain` is a named set of kinds.

What it leaves out: images (canvas.py) and pairs (generate.py). Lengths are in units of the canvas side,
angles in degrees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, ClassVar, Generic, Literal, TypeVar

from PIL import Image

from vlm_contextrl.data_recipes.render.canvas import Canvas

AnswerType = Literal["choice", "exact", "numeric", "math", "boolean"]
CHOICE_SHARE = 0.15
OPTION_LETTERS = "ABCDEFGH"
MAX_TRIES = 4000


@dataclass(frozen=True)
class Scene:
    """Base of every scene: the kind it belongs to, and the name of its background."""

    kind: ClassVar[str] = ""
    background: str


S = TypeVar("S", bound=Scene)
T = TypeVar("T")


@dataclass(frozen=True)
class Alternative(Generic[S]):
    """Another answer of a query, and how to make the scene (one fact changed) that has it."""

    answer: str
    make: Callable[[Random], S]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Ask(Generic[S]):
    """A question before it is posed; `vocabulary` lists the answers that may stand as options (if any)."""

    query: str
    answer_of: Callable[[S], str | None]
    answer_type: AnswerType
    answer: str
    alternatives: tuple[Alternative[S], ...]
    vocabulary: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """A posed question.

    `answer_of(scene)` is None where the query has no single answer; `edit(rng)` changes one decisive fact.
    """

    type: str
    query: str
    answer: str
    answer_type: AnswerType
    options: tuple[str, ...]
    answer_of: Callable[[Any], str | None]
    edit: Callable[[Random], Any]


@dataclass(frozen=True)
class Asker(Generic[S]):
    """A question type.

    `build` returns None where the scene does not allow it. `balance` lists the answers to draw, uniformly or
    by `shares`; without it they come as the scenes come.
    """

    type: str
    build: Callable[[S, Random], Ask[S] | None]
    balance: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Kind(Generic[S]):
    """One sort of picture. `facts` come in reading order after `opening`; an edit changes one of them."""

    name: str
    opening: str
    sample: Callable[[Random], S]
    draw: Callable[[S, Canvas], None]
    facts: Callable[[S], list[str]]
    askers: tuple[Asker[S], ...]


def choose_edit(alternatives: Sequence[Alternative[S]], rng: Random) -> S:
    """One alternative scene by weight."""
    return rng.choices(alternatives, [alternative.weight for alternative in alternatives])[0].make(rng)


def pose(kind: str, ask: Ask[S], rng: Random, choice_share: float = CHOICE_SHARE) -> SceneQuestion:
    """Word the question openly or, with probability `choice_share`, as multiple choice where that is natural.

    The options always hold the true answer and an answer that one edit can reach. Their order is uniform,
    so no letter is favoured.
    """
    if len(ask.vocabulary) < 3 or rng.random() >= choice_share:
        return SceneQuestion(
            type=kind,
            query=ask.query,
            answer=ask.answer,
            answer_type=ask.answer_type,
            options=(),
            answer_of=ask.answer_of,
            edit=lambda edit_rng: choose_edit(ask.alternatives, edit_rng),
        )
    weights = [alternative.weight for alternative in ask.alternatives]
    reachable = rng.choices(ask.alternatives, weights)[0].answer
    rest = [word for word in ask.vocabulary if word not in (ask.answer, reachable)]
    options = [ask.answer, reachable, *rng.sample(rest, min(2, len(rest)))]
    rng.shuffle(options)
    letters = dict(zip(options, OPTION_LETTERS, strict=False))
    kept = tuple(alternative for alternative in ask.alternatives if alternative.answer in letters)

    def letter_of(scene: S) -> str | None:
        answer = ask.answer_of(scene)
        return None if answer is None else letters.get(answer)

    return SceneQuestion(
        type=kind,
        query=ask.query,
        answer=letters[ask.answer],
        answer_type="choice",
        options=tuple(options),
        answer_of=letter_of,
        edit=lambda edit_rng: choose_edit(kept, edit_rng),
    )


@dataclass(frozen=True)
class Domain:
    """A named set of kinds with one face: sample, draw, describe, questions."""

    name: str
    kinds: tuple[Kind[Any], ...]

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the question types, all kinds together."""
        return tuple(asker.type for kind in self.kinds for asker in kind.askers)

    def kind(self, name: str) -> Kind[Any]:
        """The kind called `name`."""
        return next(kind for kind in self.kinds if kind.name == name)

    def sample(self, rng: Random) -> Scene:
        """A random scene; kinds weigh as many times as they have question types."""
        scene: Scene = rng.choices(self.kinds, [len(kind.askers) for kind in self.kinds])[0].sample(rng)
        return scene

    def draw(self, scene: Scene, size_px: int) -> Image.Image:
        """The scene as a square RGB image of `size_px`."""
        canvas = Canvas(size_px, scene.background)
        self.kind(scene.kind).draw(scene, canvas)
        return canvas.finish()

    def facts(self, scene: Scene) -> list[str]:
        """Every fact in reading order; the background is the last."""
        return [*self.kind(scene.kind).facts(scene), f"{scene.background} background"]

    def describe(self, scene: Scene) -> str:
        """All facts as one plain sentence."""
        kind = self.kind(scene.kind)
        return kind.opening + ", ".join(self.facts(scene)) + "."

    def questions(self, scene: Scene, rng: Random, choice_share: float = CHOICE_SHARE) -> list[SceneQuestion]:
        """One question of every type that the scene allows, in random order."""
        askers = list(self.kind(scene.kind).askers)
        rng.shuffle(askers)
        asked = ((asker.type, asker.build(scene, rng)) for asker in askers)
        return [
            pose(name, ask, rng, choice_share) for name, ask in asked if ask is not None and ask.alternatives
        ]

    def ask(
        self, question_type: str, rng: Random, choice_share: float = CHOICE_SHARE
    ) -> tuple[Scene, SceneQuestion]:
        """A fresh scene with a question of this type, its answer near uniform over the type's vocabulary."""
        kind, asker = self._find(question_type)
        target = rng.choices(asker.balance, asker.shares)[0] if asker.balance else None
        for _ in range(MAX_TRIES):
            scene = kind.sample(rng)
            ask = asker.build(scene, rng)
            if ask is not None and ask.alternatives and target in (None, ask.answer):
                return scene, pose(question_type, ask, rng, choice_share)
        raise AssertionError(
            f"{self.name}: no scene for {question_type} with answer {target!r} in {MAX_TRIES} tries"
        )

    def _find(self, question_type: str) -> tuple[Kind[Any], Asker[Any]]:
        return next(
            (kind, asker) for kind in self.kinds for asker in kind.askers if asker.type == question_type
        )


def scene_hash(scene: Scene) -> str:
    """A stable name of a scene: 16 hex digits over its kind and fields."""
    return hashlib.sha256(json.dumps([scene.kind, asdict(scene)], sort_keys=True).encode()).hexdigest()[:16]


def to(answer: str, scene: S, weight: float = 1.0) -> Alternative[S]:
    """The alternative that is this scene."""
    return Alternative(answer, lambda _: scene, weight)


def among(answer: str, items: Sequence[T], make: Callable[[T], S], weight: float = 1.0) -> Alternative[S]:
    """The alternative that is `make(item)` of an item drawn uniformly."""
    return Alternative(answer, lambda rng: make(rng.choice(items)), weight)


def words(rng: Random, templates: Sequence[str], **fields: str) -> str:
    """One of the paraphrases, filled in."""
    return rng.choice(templates).format(**fields)


def yes_no(truth: bool) -> str:
    """`yes` or `no`."""
    return "yes" if truth else "no"


def with_article(phrase: str) -> str:
    """`an orange star`, `a red star`."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def swap(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    """The tuple with one item replaced."""
    return (*items[:index], item, *items[index + 1 :])


def step_weight(before: int, after: int, first: int) -> float:
    """Weight of an edit that changes a count by one.

    Steps first<->first+1, first+2<->first+3 ... weigh more, which keeps edited counts near uniform: equal
    weights would visit the middle counts twice as often as the two ends.
    """
    return 8.0 if (min(before, after) - first) % 2 == 0 else 1.0


# How often each of four counts stands in a scene. It is the stationary distribution of the walk that
# `step_weight` describes, so edited counts are distributed exactly as the counts before the edit.
COUNT_SHARES = (8.0, 9.0, 9.0, 8.0)
