"""What TinyVL reads: packed rows of rendered scenes, and the text its tokenizer is made from."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from vlm_contextrl.data_recipes.render import DOMAINS, Domain, SceneQuestion, scene_examples
from vlm_contextrl.data_recipes.tinyvl.settings import TinyVLConfig
from vlm_contextrl.packing import Continuation, PackedRow
from vlm_contextrl.processing import EncodedPrompt, ProcessedImage, Processor
from vlm_contextrl.prompts import vqa_messages


def corpus(config: TinyVLConfig, n_scenes: int) -> Iterator[str]:
    """Text of rendered scenes, for the tokenizer."""
    for index in range(n_scenes):
        _, description, questions, _ = scene_examples(config.seed, index, size_px=32, questions_per_scene=8)
        yield description
        for question in questions:
            yield from _turn_texts(question)
    fixed = (
        "user\n", "assistant\n", "Describe the image.", "Find", "\nIs this answer right?", "\nIn image A: ", "\nIn image B: ",
        "Image A:", "\nImage B:", "\nWhich image supports the answer? Output A or B directly.",
        "Question: ", "\nAnswer: ", "A", "B", "C", "D",
    )  # fmt: skip
    yield from fixed * 50


def _turn_texts(question: SceneQuestion) -> list[str]:
    message = vqa_messages(question.query, options=question.options)[0]
    return [part["text"] for part in message["content"] if part["type"] == "text"] + [
        question.answer,
        f" {question.answer}",
    ]


class PretrainingRows:
    """Packed rows of rendered scenes: description, questions, checks; one or two images."""

    def __init__(self, config: TinyVLConfig, processor: Processor) -> None:
        self.config = config
        self.processor = processor
        self.end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.after_image = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")

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
        turns = [([{"type": "image"}, {"type": "text", "text": "Describe the image."}], description)]
        for question in questions:
            turns.append(
                (vqa_messages(question.query, options=question.options)[0]["content"], question.answer)
            )
        turns += [self._find(description, rng) for _ in range(self.config.lookups_per_scene)]
        turns.append(self._check(rng.choice(questions), rng))
        return self._pack((first,), turns)

    def _find(self, description: str, rng: random.Random) -> tuple[list[dict[str, str]], str]:
        """A word of the description and all phrases that hold it: looking things up, without the grammar of a question."""
        phrases = [phrase.split() for phrase in description.removesuffix(".").split(", ")]
        word = rng.choice(rng.choice(phrases))
        found = ", ".join(" ".join(phrase) for phrase in phrases if word in phrase)
        return [{"type": "image"}, {"type": "text", "text": f"Find {word}."}], found

    def _check(self, question: SceneQuestion, rng: random.Random) -> tuple[list[dict[str, str]], str]:
        answer, verdict = question.answer, "yes"
        if rng.random() < 0.5:
            answer, verdict = str(question.answer_of(question.edit(rng))), "no"
        text = f"Question: {question.query}\nAnswer: {answer}\nIs this answer right?"
        return [{"type": "image"}, {"type": "text", "text": text}], verdict

    def _two_images(
        self, first: ProcessedImage, domain: Domain, questions: list[SceneQuestion], rng: random.Random
    ) -> PackedRow:
        edited = questions[0].edit(rng)
        second = self.processor.process_image(domain.draw(edited, self.config.size_px))
        is_first = [True, False]
        rng.shuffle(is_first)
        head = [
            {"type": "text", "text": "Image A:"},
            {"type": "image"},
            {"type": "text", "text": "\nImage B:"},
            {"type": "image"},
        ]
        turns = []
        for question in questions:
            for letter, of_first in zip("AB", is_first, strict=True):
                answer = question.answer if of_first else question.answer_of(edited)
                if answer is not None:
                    text = f"\nIn image {letter}: {question.query}"
                    options = "".join(
                        f"\n{o}. {option}" for o, option in zip("ABCDEFGH", question.options, strict=False)
                    )
                    turns.append(([*head, {"type": "text", "text": text + options}], answer))
        return self._pack((first, second) if is_first[0] else (second, first), turns)

    def _pack(
        self, images: tuple[ProcessedImage, ...], turns: list[tuple[list[dict[str, str]], str]]
    ) -> PackedRow:
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
