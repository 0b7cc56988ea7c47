"""Rows of the instruction stage: questions in two styles, claims to check, two pictures to compare.

The language stage teaches to read a picture; here the model learns what can be asked about what it reads. One picture: questions, and
claimed answers to check. Asked directly, a multiple-choice question is answered by a letter; asked plainly, mostly by a letter, now and
then by the text of the option, as such questions are answered in the wild. Two pictures that differ in one fact: the same about either
of them by its letter, and looking things up in both. Choosing the picture that supports an answer is never asked for: that is what
ContextRL is to teach.
"""

from __future__ import annotations

from random import Random

from vlm_contextrl.data_recipes.render import DOMAINS, SceneQuestion, scene_examples
from vlm_contextrl.data_recipes.render.scene import OPTION_LETTERS, yes_no
from vlm_contextrl.data_recipes.tinyvl.lookups import Lookup, lookups, phrases_of
from vlm_contextrl.data_recipes.tinyvl.rows import (
    Rows,
    Turn,
    check_text,
    check_turn,
    description_turn,
    in_image,
    look_up,
    lookup_turn,
)
from vlm_contextrl.packing import PackedRow
from vlm_contextrl.prompts import option_lines, vqa_messages

FIRST_SCENE = 20_000_000  # scene numbers of this stage start here, so that the stages share none
DESCRIBED_SHARE = 1 / 3  # of the rows with one image
DIRECT_SHARE = 0.2  # of the questions: asked to answer directly
SPELLED_SHARE = 0.1  # of the other questions with options: answered by the option's text
FOUND_IN = {(True, False): "1", (False, True): "2", (True, True): "both", (False, False): "none"}
TOO_MANY_LOOKUPS = 8  # drawn, of which those are kept that tell the pictures apart


class InstructionRows(Rows):
    """Packed rows of rendered scenes for the instruction stage."""

    def row(self, index: int) -> PackedRow:
        """Row `index`; depends on the seed and the index only."""
        rng = Random(f"instruction:{self.config.seed}:{index}")
        image, description, questions, domain = scene_examples(
            self.config.seed,
            FIRST_SCENE + index,
            self.config.instruction_domains,
            self.config.size_px,
            self.config.questions_per_scene,
        )
        if rng.random() < self.config.instruction_two_image_share:
            edited = questions[0].edit(rng)
            other = DOMAINS[domain].draw(edited, self.config.size_px)
            sides = [(image, description), (other, DOMAINS[domain].describe(edited))]
            first_is_a = rng.random() < 0.5
            images, descriptions = zip(*(sides if first_is_a else sides[::-1]), strict=True)
            turns = self._comparisons(questions, edited, first_is_a, rng)
            turns += self._lookups_in_both(descriptions, rng)
        else:
            images = (image,)
            turns = self._readings(description, questions, rng)
        return self._pack(tuple(self.processor.process_image(each) for each in images), turns)

    def _readings(self, description: str, questions: list[SceneQuestion], rng: Random) -> list[Turn]:
        """One picture: perhaps its description; every question, and a claimed answer of it to check; lookups."""
        turns: list[Turn] = []
        if rng.random() < DESCRIBED_SHARE:
            turns.append(description_turn(description))
        for question in questions:
            direct = rng.random() < DIRECT_SHARE
            messages = vqa_messages(
                question.query, options=question.options, style="direct" if direct else "plain"
            )
            spelled = not direct and question.options and rng.random() < SPELLED_SHARE
            answer = question.options[OPTION_LETTERS.index(question.answer)] if spelled else question.answer
            turns.append((messages[0]["content"], answer))
            claimed = rng.choice((question.answer, str(question.answer_of(question.edit(rng)))))
            turns.append(check_turn(question, claimed))
        turns += map(lookup_turn, lookups(description, self.config.lookups_per_scene // 2, self.words, rng))
        return turns

    def _comparisons(
        self, questions: list[SceneQuestion], edited: object, first_is_a: bool, rng: Random
    ) -> list[Turn]:
        """Two pictures: the question whose answer differs, about one of them, and both its answers checked for both; then one
        more question with one check."""
        turns: list[Turn] = []
        for question in questions[:2]:
            told = {first_is_a: question.answer, not first_is_a: question.answer_of(edited)}
            asked = rng.choice([is_a for is_a, answer in told.items() if answer is not None])
            text = f"{question.query}{option_lines(question.options)}"
            turns.append((in_image(asked, text), str(told[asked])))
            if question is questions[0]:
                claims = [(is_a, claimed) for is_a in told for claimed in told.values()]
            else:
                claims = [(asked, rng.choice((told[asked], question.answer_of(question.edit(rng)))))]
            for is_a, claimed in claims:
                checked = in_image(is_a, check_text(question, str(claimed)))
                turns.append((checked, yes_no(claimed == told[is_a])))
        return turns

    def _lookups_in_both(self, descriptions: tuple[str, str], rng: Random) -> list[Turn]:
        """Two pictures: words looked up in both are found in `1`, `2`, `both` or `none` of them; in one first."""
        phrases = [phrases_of(description) for description in descriptions]
        drawn: list[tuple[Lookup, str]] = []
        for description in descriptions:
            for each in lookups(description, TOO_MANY_LOOKUPS, self.words, rng):
                first, second = (
                    any(set(each.words) <= set(phrase) for phrase in its_phrases) for its_phrases in phrases
                )
                drawn.append((each, FOUND_IN[first, second]))
        rng.shuffle(drawn)
        drawn.sort(key=lambda pair: pair[1] not in ("1", "2"))
        n = self.config.lookups_per_scene
        kept = {look_up(each): found for each, found in (*drawn[: n - 1], drawn[-1])}
        return [(in_image(None, text), found) for text, found in kept.items()]
