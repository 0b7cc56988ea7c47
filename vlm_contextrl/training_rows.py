"""The rows of a run: questions and pairs as they lie in their folders, or as the data switches change them.

`pair_source: random` puts another pair's context with another answer in the confounder's place, to see what minimal edits are worth.
`pairs_as_questions` makes pairs ordinary questions among the others (the DA-RL arm of arXiv 2606.17053): `selection` asks which of both
contexts supports the answer, in one row for either answer that is known; `vqa` asks the query of each context by itself, the control for
what the pictures and answers alone are worth. The paper mixes pairs in "as ordinary prompts"; taking `selection` for that is our reading.

Every choice depends on the seed and the pair's id only, so a pair looks the same in every epoch.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from string import ascii_uppercase

from vlm_contextrl.config import DataSettings
from vlm_contextrl.errors import DataError
from vlm_contextrl.lazy_rows import LazyRows
from vlm_contextrl.matching import answers_equal, words_equal
from vlm_contextrl.pairs import Context, ContrastivePair, EncodedImage, QuestionRow
from vlm_contextrl.prompts import selection_query
from vlm_contextrl.storage import read_pairs, read_questions

MOST_LOOKED_AT = 1000  # candidates for a context: enough to find one, few enough to ask for every pair


def training_rows(data: DataSettings, seed: int) -> tuple[Sequence[QuestionRow], Sequence[ContrastivePair]]:
    """Questions and pairs to train on, read from their folders and changed by the switches."""
    questions: Sequence[QuestionRow] = read_questions(data.questions)
    pairs: Sequence[ContrastivePair] = read_pairs(data.pairs) if data.pairs else []
    if data.pair_source == "random":
        pairs = RandomConfounders(pairs, seed)
    if data.pairs_as_questions:
        of_each = data.pairs_as_questions == "vqa"
        questions = WithPairs(questions, pairs, of_each=of_each, seed=seed, share=data.pairs_share)
    return questions, pairs


class OtherContexts:
    """Contexts of other pairs that do not support a pair's answer.

    Pairs that ask the same and answer differently come first: of their contexts it is known. When there are too few, contexts of
    pairs that ask something else and answer differently are taken; such a context may support the answer by chance.
    """

    def __init__(self, pairs: Sequence[ContrastivePair], seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self._asking: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            self._asking[pair.query, pair.options].append(index)

    def of(
        self, pair: ContrastivePair, count: int, *, for_either_answer: bool = False
    ) -> list[tuple[Context, str | None]]:
        """(context, what it answers to the pair's query if that is known), `count` of them, all different; the same at every call.

        for_either_answer: they support the confounder's answer no more than the pair's own. DataError when there are fewer.
        """
        answers = [pair.answer]
        if for_either_answer and pair.confounder_answer is not None:
            answers.append(pair.confounder_answer)
        found: list[tuple[Context, str | None]] = []
        seen: list[Context] = [pair.context, pair.confounder]
        for other in self._candidates(pair):
            if len(found) == count:
                break
            is_new = type(other.context) is type(pair.context) and other.context not in seen
            if is_new and _answers_none_of(answers, pair, other):
                seen.append(other.context)
                found.append((other.context, other.answer if _ask_the_same(pair, other) else None))
        if len(found) < count:
            raise DataError(
                f"pair {pair.id}: found {len(found)} contexts of other pairs with another answer, expected {count}; give more pairs"
            )
        return found

    def _candidates(self, pair: ContrastivePair) -> Iterator[ContrastivePair]:
        rng = random.Random(f"{self.seed}:others:{pair.id}")
        for places in (self._asking[pair.query, pair.options], range(len(self.pairs))):
            for index in rng.sample(places, min(len(places), MOST_LOOKED_AT)):
                yield self.pairs[index]


def _ask_the_same(pair: ContrastivePair, other: ContrastivePair) -> bool:
    return (pair.query, pair.options) == (other.query, other.options)


def _answers_none_of(answers: Sequence[str], pair: ContrastivePair, other: ContrastivePair) -> bool:
    if _ask_the_same(pair, other):
        return not any(answers_equal(answer, other.answer, pair.answer_type) for answer in answers)
    text = _in_words(other, other.answer)
    return not any(words_equal(_in_words(pair, answer), text) for answer in answers)


def _in_words(pair: ContrastivePair, answer: str) -> str:
    """An option's text in place of its letter, which means nothing under other options."""
    return pair.options[ascii_uppercase.index(answer)] if pair.answer_type == "choice" else answer


class RandomConfounders(LazyRows[ContrastivePair]):
    """The same pairs with another pair's context in the confounder's place. The confounder's answer is known where the other pair
    asks the same."""

    def __init__(self, pairs: Sequence[ContrastivePair], seed: int) -> None:
        self.pairs, self.others = pairs, OtherContexts(pairs, seed)
        self.rejects = getattr(pairs, "rejects", ())

    def __len__(self) -> int:
        return len(self.pairs)

    def _row(self, index: int) -> ContrastivePair:
        pair = self.pairs[index]
        ((context, answer),) = self.others.of(pair, 1)
        return replace(pair, confounder=context, confounder_answer=answer)


class WithPairs(LazyRows[QuestionRow]):
    """Questions, and behind them pairs as questions.

    of_each: the query asked of each context whose answer is known; otherwise which context supports the answer. share: of all rows that are
    such questions, which are then drawn by the seed; None takes them all. DataError when there are fewer.
    """

    def __init__(
        self,
        questions: Sequence[QuestionRow],
        pairs: Sequence[ContrastivePair],
        *,
        of_each: bool,
        seed: int,
        share: float | None = None,
    ) -> None:
        self.questions, self.pairs, self.of_each, self.seed = questions, pairs, of_each, seed
        self.rejects = getattr(questions, "rejects", ())
        known = [1 if pair.confounder_answer is None else 2 for pair in pairs]
        self._places = [(index, number) for index, count in enumerate(known) for number in range(count)]
        if share is not None:
            wanted = round(share / (1 - share) * len(questions))
            if wanted > len(self._places):
                raise DataError(
                    f"data.pairs_share {share:g} of the rows needs {wanted} questions of pairs beside {len(questions)} others, found "
                    f"{len(self._places)}; lower it or give more pairs"
                )
            self._places = random.Random(f"{seed}:pairs share").sample(self._places, wanted)

    def __len__(self) -> int:
        return len(self.questions) + len(self._places)

    def _row(self, index: int) -> QuestionRow:
        if index < len(self.questions):
            return self.questions[index]
        at, number = self._places[index - len(self.questions)]
        pair = self.pairs[at]
        if self.of_each:
            return pair.questions()[number]
        asked = pair.reversed() if number else pair
        assert asked is not None  # two places only where the confounder's answer is known
        support = random.Random(f"{self.seed}:as question:{asked.id}").randrange(2)
        return selection_question(asked, support)


def selection_question(pair: ContrastivePair, support: int) -> QuestionRow:
    """Which context supports the answer, as a multiple-choice question. support: 0 when the context comes first, 1 when second."""
    first, second = (pair.context, pair.confounder) if support == 0 else (pair.confounder, pair.context)
    images: tuple[EncodedImage, ...] = ()
    text = ""
    if isinstance(first, EncodedImage):
        assert isinstance(second, EncodedImage)
        images = (first, second)
    else:
        text = f"The first context:\n{first}\nThe second context:\n{second}"
    query, options = selection_query(pair.query, pair.answer, pair.options, "image" if images else "text")
    return QuestionRow(
        id=f"{pair.id}~select",
        query=query,
        answer="AB"[support],
        images=images,
        context_text=text,
        options=options,
        answer_type="choice",
        domain=pair.domain,
        recipe=pair.recipe,
        provenance=dict(pair.provenance),
        verdicts=dict(pair.verdicts),
    )
