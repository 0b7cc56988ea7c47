"""What TinyVL reads: packed rows of rendered scenes, and the text its tokenizer is made from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from vlm_contextrl.data_recipes.render import DOMAINS, Domain, SceneQuestion, scene_examples
from vlm_contextrl.data_recipes.render.scene import yes_no
from vlm_contextrl.data_recipes.tinyvl.lookups import Lookup, lookups
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.data_recipes.tinyvl.vision_stage import scene_words
from vlm_contextrl.packing import Continuation, PackedRow
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor
from vlm_contextrl.prompts import option_lines, shown_answer, vqa_messages


def corpus(config: TinyVLConfig, n_scenes: int) -> Iterator[str]:
    """Text of rendered scenes, for the tokenizer."""
    for index in range(n_scenes):
        _, description, questions, _ = scene_examples(config.seed, index, size_px=32, questions_per_scene=8)
        yield description
        for question in questions:
            yield from _turn_texts(question)
    fixed = (
        "user\n", "assistant\n", "Describe the image.", "Look up.", ": none; ", "\nIs this answer right?",
        "\nIn image A: ", "\nIn image B: ", "Image A:", "\nImage B:", "Question: ", "\nAnswer: ", "A", "B", "C", "D",
        "\nWhich image supports the answer? Output A or B directly.",
    )  # fmt: skip
    yield from fixed * 50


def _turn_texts(question: SceneQuestion) -> list[str]:
    message = vqa_messages(question.query, options=question.options)[0]
    return [part["text"] for part in message["content"] if part["type"] == "text"] + [
        question.answer,
        f" {question.answer}",
    ]


def check_text(question: SceneQuestion, claimed: str) -> str:
    """A claimed answer to be checked, told as a selection prompt tells it."""
    asked = f"Question: {question.query}{option_lines(question.options)}"
    return f"{asked}\nAnswer: {shown_answer(claimed, question.options)}\nIs this answer right?"


Content = list[dict[str, str]]
Turn = tuple[Content, str]  # what is asked, what is answered


def of_image(text: str) -> Content:
    """One image and a text about it."""
    return [{"type": "image"}, {"type": "text", "text": text}]


def look_up(lookup: Lookup) -> str:
    """The text of a lookup, of one image or of two."""
    return f"Look up {' '.join(lookup.words)}."


def description_turn(description: str) -> Turn:
    """One image, described."""
    return of_image("Describe the image."), description


def lookup_turn(lookup: Lookup) -> Turn:
    """One image, and the phrases that hold the words."""
    return of_image(look_up(lookup)), ", ".join(" ".join(phrase) for phrase in lookup.found) or "none"


def check_turn(question: SceneQuestion, claimed: str) -> Turn:
    """One image, and whether the claimed answer is right."""
    return of_image(check_text(question, claimed)), yes_no(claimed == question.answer)


def in_image(is_a: bool | None, text: str) -> Content:
    """Two images and a text about A or B; about both for None."""
    where = "" if is_a is None else f"In image {'A' if is_a else 'B'}: "
    return [
        {"type": "text", "text": "Image A:"},
        {"type": "image"},
        {"type": "text", "text": "\nImage B:"},
        {"type": "image"},
        {"type": "text", "text": f"\n{where}{text}"},
    ]


class Rows(ABC):
    """Packed rows of rendered scenes: turns about the same images, each a continuation of its own."""

    def __init__(self, config: TinyVLConfig, processor: Processor) -> None:
        self.config = config
        self.processor = processor
        self.words = scene_words(config)
        self.end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.after_image = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")

    @abstractmethod
    def row(self, index: int) -> PackedRow:
        """Row `index`; depends on the seed and the index only."""

    def _pack(self, images: tuple[ProcessedImage, ...], turns: list[Turn]) -> PackedRow:
        prompts = [
            self.processor.encode([{"role": "user", "content": content}], images) for content, _ in turns
        ]
        shared = 1 + max(i for i, token in enumerate(prompts[0].ids_T.tolist()) if token == self.after_image)
        continuations = []
        for prompt, (_, answer) in zip(prompts, turns, strict=True):
            given = prompt.ids_T[shared:]
            answer_ids = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
            continuations.append(
                Continuation(torch.cat([given, torch.tensor([*answer_ids, self.end])]), len(given))
            )
        return PackedRow(EncodedPrompt(prompts[0].ids_T[:shared], images), tuple(continuations))


class PretrainingRows(Rows):
    """Rows of the language stage: description, questions, lookups, checks; one or two images."""

    def row(self, index: int) -> PackedRow:
        """Row `index`; depends on the seed and the index only."""
        rng = random.Random(f"tinyvl:{self.config.seed}:{index}")
        image, description, questions, domain = scene_examples(
            self.config.seed,
            index,
            size_px=self.config.size_px,
            questions_per_scene=self.config.questions_per_scene,
        )
        first = self.processor.process_image(image)
        if rng.random() < self.config.two_image_share:
            return self._two_images(first, DOMAINS[domain], questions[:2], rng)
        turns = [description_turn(description)]
        for question in questions:
            turns.append(
                (vqa_messages(question.query, options=question.options)[0]["content"], question.answer)
            )
        asked = lookups(description, self.config.lookups_per_scene, self.words, rng)
        turns += map(lookup_turn, asked)
        checked = rng.choice(questions)
        claimed = checked.answer if rng.random() < 0.5 else str(checked.answer_of(checked.edit(rng)))
        turns.append(check_turn(checked, claimed))
        return self._pack((first,), turns)

    def _two_images(
        self, first: ProcessedImage, domain: Domain, questions: list[SceneQuestion], rng: random.Random
    ) -> PackedRow:
        """A scene and the same scene after an edit, in random order: questions about either, and checks of answers."""
        edited = questions[0].edit(rng)
        second = self.processor.process_image(domain.draw(edited, self.config.size_px))
        first_is_a = rng.random() < 0.5
        turns: list[Turn] = []
        for question in questions:
            told = {first_is_a: question.answer, not first_is_a: question.answer_of(edited)}
            for is_a, answer in told.items():
                if answer is None:
                    continue
                text = f"{question.query}{option_lines(question.options)}"
                turns.append((in_image(is_a, text), answer))
                claimed = rng.choice([each for each in told.values() if each is not None])
                turns.append((in_image(is_a, check_text(question, claimed)), yes_no(claimed == answer)))
        return self._pack((first, second) if first_is_a else (second, first), turns)
