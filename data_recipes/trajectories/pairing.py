"""The pair of two trajectories.

    query        what both have in common: repository, files, functions; asked of either trajectory it has another answer
    answer       the change that the context's agent made there
    context      what that agent did and saw, without the task it was given, with both patches masked
    confounder   the same of the other agent; its answer is known, so the pair can be reversed

The paper (arXiv 2606.17053) does not publish its wording. A query that holds one side's issue fits one context only, cannot be reversed,
and is answered by the words that issue and trajectory share: on real logs a bag of words then picked the right context 93 times in
100, against 57 for this query. So the issue is in neither. Which side is the context is a fair coin per pair.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vlm_contextrl.data_recipes.assistants import Assistant, Prompt, Refusal, assistant
from vlm_contextrl.data_recipes.inputs import provenance
from vlm_contextrl.data_recipes.trajectories import masking, shortcuts
from vlm_contextrl.data_recipes.trajectories.budget import Rendered, TokenCounter, render
from vlm_contextrl.data_recipes.trajectories.facts import counts
from vlm_contextrl.data_recipes.trajectories.formats import Message, Trajectory
from vlm_contextrl.data_recipes.trajectories.patches import FilePatch, parse_patch
from vlm_contextrl.data_recipes.trajectories.settings import TrajectoriesConfig
from vlm_contextrl.data_recipes.trajectories.sources import Place, Reader
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.row_schema import check_row

RECIPE = "trajectories"
MADE_NAME = "pairs.jsonl"


class Task(NamedTuple):
    """A pair to be made: where its trajectories are, what both edit, and who told that."""

    first: Place
    second: Place
    files: tuple[str, ...]
    functions: tuple[str, ...]
    similarity: float
    told_by: str


@dataclass
class Made:
    """What became of a task: a pair (its fields) or a reason; how the shortcuts of `shortcuts` fare on it."""

    pair: dict[str, Any] | None = None
    reason: str = ""
    lexical: tuple[float, float] = (0.5, 0.0)
    longer: float = 0.5
    masks: float = 0.5


@dataclass(frozen=True)
class MakePairs:
    """Work of one batch: tasks -> pairs.jsonl."""

    config: TrajectoriesConfig
    read: Reader
    count: TokenCounter

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "read": self.read, "count": self.count}

    @cached_property
    def judge(self) -> Assistant:
        """Who is asked; a model is loaded once."""
        assert self.config.judge is not None
        return assistant(self.config.judge)

    def __call__(self, tasks: Sequence[Task], folder: Path) -> None:
        made = [self.make(task) for task in tasks]
        if self.config.judge:
            made = self._judged(made)
        lines = [json.dumps(asdict(each)) + "\n" for each in made]
        (folder / MADE_NAME).write_text("".join(lines), encoding="utf-8")

    def make(self, task: Task) -> Made:
        """The pair of a task, not yet judged."""
        both = self.read(task.first), self.read(task.second)
        if random.Random(f"{self.config.seed}:{both[0].id}:{both[1].id}").random() < 0.5:
            both = both[1], both[0]
        patches = [parse_patch(side.patch) for side in both]
        query = self._query(task, both[0].repository)
        answers = [self._answer(files, task) for files in patches]
        lengths = self.count(answers)
        if max(lengths) > self.config.answer_tokens:
            return Made(
                reason=f"long_answer: {max(lengths)} tokens, expected at most {self.config.answer_tokens} (answer_tokens)"
            )

        lines = list(
            dict.fromkeys(line for files in patches for file in files for line in file.changed_lines())
        )
        ids = list(dict.fromkeys(name for side in both for name in (side.id, side.instance)))
        masked = [_masked(side.messages, lines, ids) for side in both]
        code = "\n".join(answers)
        names = shortcuts.names_in(query) | shortcuts.names_in(code) | shortcuts.identifiers_in(code)
        masked, rendered, gone = self._rendered(masked, names)
        for side, shown in zip(both, rendered, strict=True):
            if not shown.text:
                return Made(
                    reason=f"no_message_fits: of {side.id} into {self.config.context_tokens} tokens (context_tokens)"
                )
        shares = [_share(side.messages, messages) for side, messages in zip(both, masked, strict=True)]
        if max(shares) > self.config.max_masked:
            return Made(
                reason=f"mostly_masked: {max(shares):.2f} of a context, expected at most {self.config.max_masked:g} (max_masked)"
            )
        contexts = [shown.text for shown in rendered]
        pair = self._pair(task, both, query, answers, rendered, shares, gone)
        if reason := check_row(pair):
            return Made(reason=f"invalid: {reason}")
        shown_pair = shortcuts.Shown(query, (answers[0], answers[1]), (contexts[0], contexts[1]))
        return Made(
            asdict(pair),
            lexical=shortcuts.lexical_outcome(shown_pair),
            longer=shortcuts.longer_outcome(shown_pair),
            masks=shortcuts.masks_outcome(shown_pair),
        )

    def _rendered(
        self, sides: Sequence[Sequence[Message]], names: set[str]
    ) -> tuple[list[list[Message]], list[Rendered], list[str]]:
        """Messages and texts of both sides without the names that only one text holds, and these names. A name less makes room for
        a message more, which may hold others: look until there are none."""
        left, gone = [list(messages) for messages in sides], list[str]()
        while True:
            rendered = [render(messages, self.config.context_tokens, self.count) for messages in left]
            telling = shortcuts.telling(names, [shown.text for shown in rendered])
            if not telling:
                return left, rendered, sorted(gone)
            gone += telling
            left = [
                [m._replace(text=masking.mask_names(m.text, telling)) for m in messages] for messages in left
            ]

    def _query(self, task: Task, repository: str) -> str:
        functions = [function.rpartition(":")[2] for function in task.functions]
        place = f"{', '.join(task.files)} of {repository}" if task.files else repository
        place = f"{', '.join(functions)} in {place}" if functions else place
        return f"A coding agent edited {place}. Its edits are masked. Which change did it make there?"

    def _answer(self, files: Sequence[FilePatch], task: Task) -> str:
        shared = [file for file in files if file.path in task.files]
        return "\n".join(
            file.text() for file in shared or [file for file in files if counts(file.path, self.config)]
        )

    def _pair(
        self, task: Task, both: tuple[Trajectory, Trajectory], query: str, answers: Sequence[str], rendered: Sequence[Rendered],
        shares: Sequence[float], names: Sequence[str],
    ) -> ContrastivePair:  # fmt: skip
        config = self.config
        told = provenance(
            *(self._source(side) for side in both),
            scene=both[0].repository,
            files=list(task.files),
            functions=list(task.functions),
            functions_told_by=task.told_by,
            similarity=round(task.similarity, 6),
            seed=config.seed,
            tokenizer=config.tokenizer,
            tokens=[shown.tokens for shown in rendered],
            messages_left_out=[shown.left_out for shown in rendered],
            masked_share=[round(share, 4) for share in shares],
            masked_names=list(names),
            thresholds=config.model_dump(include={
                "match", "same", "min_issue_similarity", "max_issue_similarity", "max_patch_overlap", "context_tokens", "max_masked",
            }),
        )  # fmt: skip
        return ContrastivePair(
            id=f"{both[0].id}--{both[1].id}",
            query=query,
            answer=answers[0],
            context=rendered[0].text,
            confounder=rendered[1].text,
            confounder_answer=answers[1],
            domain=RECIPE,
            recipe=RECIPE,
            provenance=told,
        )

    def _source(self, side: Trajectory) -> QuestionRow:
        """A trajectory as the question that its agent was asked, for the record of where a pair comes from."""
        told = {
            "licence": side.licence or self.config.licence,
            "source": side.where,
            "format": side.format,
            "repository": side.repository,
        }
        told |= {"commit": side.commit, "issue": side.instance, "agent_model": side.model}
        kept: dict[str, Any] = {key: value for key, value in told.items() if value}
        if side.resolved is not None:
            kept["resolved"] = side.resolved
        return QuestionRow(id=side.id, query=side.issue, answer=side.patch, provenance=kept)

    def _judged(self, made: Sequence[Made]) -> list[Made]:
        """Pairs that the judge takes for unambiguous and free of shortcuts; the others with the reason."""
        assert self.config.judge is not None
        asked = [each for each in made if each.pair]
        prompts = []
        for each in asked:
            assert each.pair is not None
            swapped = random.Random(f"judge:{self.config.seed}:{each.pair['id']}").random() < 0.5
            prompts.append(
                Prompt(f"{each.pair['id']}:{'B' if swapped else 'A'}", _judge_prompt(each.pair, swapped))
            )
        answers = self.judge.ask(prompts) if prompts else []
        for each, prompt, said in zip(asked, prompts, answers, strict=True):
            assert each.pair is not None
            if isinstance(said, Refusal):
                each.pair, each.reason = None, f"judge_refused: {said.why}, expected an answer"
                continue
            answer = said[0]
            verdict = _verdict(answer, right=prompt.key[-1])
            each.pair["verdicts"] = {
                "judge": {
                    "name": self.config.judge.name,
                    "revision": self.judge.revision,
                    "answer": answer.strip()[-200:],
                }
            }
            if verdict:
                each.pair, each.reason = None, verdict
        return list(made)


def pair_of(made: Made) -> ContrastivePair:
    """The pair that a line of pairs.jsonl holds."""
    assert made.pair is not None
    return ContrastivePair(**{**made.pair, "options": tuple(made.pair["options"])})


def _masked(messages: Sequence[Message], lines: Sequence[str], ids: Sequence[str]) -> list[Message]:
    """Messages without patch and ids; the submission, with which a trajectory ends, goes whole."""
    masked = []
    for message in messages:
        text = masking.mask_lines(masking.without_diffs(message.text), lines)
        edit = message.agent and masking.MASK in text
        masked.append(Message(message.agent, masking.mask_names(text, ids), edit))
    while masked and not masked[-1].text.replace(masking.MASK, "").strip():
        masked.pop()
    return masked


def _share(before: Sequence[Message], after: Sequence[Message]) -> float:
    kept = before[: len(after)]
    return masking.masked_share([message.text for message in kept], [message.text for message in after])


def _judge_prompt(pair: dict[str, Any], swapped: bool) -> str:
    first, second = (
        (pair["confounder"], pair["context"]) if swapped else (pair["context"], pair["confounder"])
    )
    return f"""Two coding agents worked on the same code. What each of them did and saw follows; edits are masked.

Context A:
{first}

Context B:
{second}

Question: {pair["query"]}
Answer: {pair["answer"]}

Which context supports the answer? Reply with one word:
A or B when one context supports it and the other does not;
AMBIGUOUS when both could, or neither does;
SHORTCUT when a copied name, number or line gives it away without following what the agent did."""


def _verdict(answer: str, right: str) -> str:
    """Why the judge rejects the pair; empty when it does not."""
    said = answer.rpartition("</think>")[2].strip()
    words = re.findall(r"\b(A|B|AMBIGUOUS|SHORTCUT)\b", said.rpartition("\n")[2])
    if not words:
        return f"judge_unclear: answered {said[-60:]!r}, expected A, B, AMBIGUOUS or SHORTCUT"
    if words[-1] in "AB":
        return (
            "" if words[-1] == right else f"judge_disagrees: chose {words[-1]}, the right context is {right}"
        )
    return f"judge_{words[-1].lower()}: the judge takes the pair for {words[-1].lower()}"
