"""The training loop: rollouts, rewards, advantages, weighted terms, one optimizer; resumable to the bit on a CPU.

Every random choice is a function of (seed, step): the order of questions and pairs, the sampling of completions, the option orders. A
checkpoint therefore holds weights, optimizer and two stream positions, and a resumed run repeats the unbroken one.

Left out here: several processes, quantised weights, other rollout engines.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vlm_contextrl.checkpoints import export, latest_checkpoint, load_checkpoint, save_checkpoint
from vlm_contextrl.config import PolicyTerm, RunConfig, SelectionTerm
from vlm_contextrl.errors import ContextRLError, InputError
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.models import load_policy
from vlm_contextrl.objectives.advantages import group_advantages
from vlm_contextrl.objectives.policy import VARIANTS
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.prompt_lengths import Overlong, pair_length, question_length
from vlm_contextrl.reference_model import ReferenceModel
from vlm_contextrl.rewards import combined_rewards, load_reward
from vlm_contextrl.rollout import Completion, sample
from vlm_contextrl.runlog import RunDirectory, check_run_folder
from vlm_contextrl.storage import content_hash, read_pairs, read_questions
from vlm_contextrl.streams import ShuffledStream
from vlm_contextrl.terms import (
    Group,
    PolicyObjective,
    SelectionObjective,
    Term,
    Update,
    completion_logps,
    under_budget,
)
from vlm_contextrl.vqa import question_prompt


class NonFiniteUpdatesError(ContextRLError, RuntimeError):
    """Too many updates in a row had a loss or gradient that is not a number."""


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run (or resume) a training run; returns the last step's metrics. The result is in `run_dir/final`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"started as {os.environ['WORLD_SIZE']} processes: training runs in one process so far; start it without torchrun"
        )
    check_run_folder(run_dir, config, resume=resume)
    for term in config.objective:
        if isinstance(term, PolicyTerm):
            for name in term.rewards:
                load_reward(name, config.data.prompt_style)
    questions = read_questions(config.data.questions)
    pairs = read_pairs(config.data.pairs) if config.data.pairs else []
    held_out = HeldOut(config.data)
    accelerator = Accelerator(mixed_precision=config.model.autocast)
    torch.manual_seed(config.seed)  # adapters start from random numbers
    policy = load_policy(config.model, accelerator.device)
    rejects = Overlong(config)
    question_at = rejects.usable(policy, questions, "questions", question_length)
    pair_at = rejects.usable(policy, pairs, "pairs", pair_length) if pairs else []
    run = RunDirectory(run_dir, config, resume=resume)
    rejects.write(run)
    trainer = Trainer(config, run, accelerator, policy, questions, question_at, pairs, pair_at, held_out)
    return trainer.fit(resume, on_step)


class Trainer:
    """One process, one policy."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        accelerator: Accelerator,
        policy: Policy,
        questions: Sequence[QuestionRow],
        question_at: list[int],
        pairs: Sequence[ContrastivePair],
        pair_at: list[int],
        held_out: HeldOut,
    ) -> None:
        self.config, self.run, self.accelerator, self.policy = config, run, accelerator, policy
        self.questions, self.question_at = questions, question_at
        self.pairs, self.pair_at = pairs, pair_at
        self.held_out = held_out
        folders = {"questions": config.data.questions, "pairs": config.data.pairs}
        self.data_hashes = {name: content_hash(folder) for name, folder in folders.items() if folder}
        self.question_stream = ShuffledStream(len(question_at), config.seed, "questions")
        self.pair_stream = ShuffledStream(max(1, len(pair_at)), config.seed, "pairs")
        self.steps = config.steps or math.ceil(
            (config.epochs or 0) * len(question_at) / config.rollout.prompts_per_step
        )
        self.policy_term = next(t for t in config.objective if isinstance(t, PolicyTerm))
        self.selection_term = next((t for t in config.objective if isinstance(t, SelectionTerm)), None)
        rollout = config.rollout
        self.terms: list[Term] = [
            PolicyObjective(t, rollout.max_new_tokens, rollout.temperature)
            if isinstance(t, PolicyTerm)
            else SelectionObjective(t)
            for t in config.objective
        ]
        style = config.data.prompt_style
        self.rewards = [
            (name, load_reward(name, style), weight) for name, weight in self.policy_term.rewards.items()
        ]
        self.trainable = [p for p in policy.parameters() if p.requires_grad]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay
        )
        needs_reference = self.policy_term.kl_coef > 0
        self.reference = ReferenceModel(config.model, policy, accelerator.device) if needs_reference else None
        self.skipped_in_a_row = 0

    # ------------------------------------------------------------ the loop

    def fit(self, resume: bool, on_step: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        """All steps from the checkpoint (or from the start) to the end."""
        start = self._resume() if resume else 0
        metrics: dict[str, Any] = (self.run.read("metrics") or [{}])[-1]
        if start:
            self._evaluate_if_due(start)  # a run that was stopped between a checkpoint and its evaluation
        with self._progress() as bar:
            task = bar.add_task("training", total=self.steps, completed=start, reward="", selection="")
            for step in range(start + 1, self.steps + 1):
                began = time.monotonic()
                groups = self._rollout(step)
                rolled = time.monotonic()
                metrics = {"step": step, **self._reward_metrics(groups), **self._update_all(step, groups)}
                self.run.write("metrics", metrics)
                self._write_samples(step, groups)
                self.run.write(
                    "timings",
                    {"step": step, "rollout_s": rolled - began, "update_s": time.monotonic() - rolled},
                )
                if step % self.config.log.save_every == 0 or step == self.steps:
                    self._save(step)
                self._evaluate_if_due(step)
                bar.update(task, completed=step, **_bar_fields(metrics))
                if on_step:
                    on_step(metrics)
        export(self.policy, self.run.path / "final")
        return metrics

    def _progress(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[reward]}  {task.fields[selection]}"), TimeRemainingColumn(),
        )  # fmt: skip

    # ------------------------------------------------------------ rollout and reward

    def _rollout(self, step: int) -> list[Group]:
        rollout = self.config.rollout
        rows = [
            self.questions[self.question_at[i]] for i in self.question_stream.take(rollout.prompts_per_step)
        ]
        prompts = [question_prompt(self.policy.processor, row, self.config.data.prompt_style) for row in rows]
        generator = torch.Generator(self.policy.device).manual_seed(_seed(self.config.seed, step))
        sampled: list[list[Completion]] = []
        self.policy.eval()
        budget = max(1, self.config.optim.tokens_per_micro_batch // rollout.completions_per_prompt)
        with self.accelerator.autocast():
            for batch in under_budget(prompts, len, budget):
                sampled += sample(
                    self.policy,
                    batch,
                    rollout.completions_per_prompt,
                    max_new_tokens=rollout.max_new_tokens,
                    temperature=rollout.temperature,
                    generator=generator,
                )
        self.policy.train()
        return self._score(rows, prompts, sampled)

    def _score(
        self, rows: list[QuestionRow], prompts: list[EncodedPrompt], sampled: list[list[Completion]]
    ) -> list[Group]:
        texts = [[self.policy.processor.decode(c.ids.tolist()) for c in group] for group in sampled]
        flat_rows: list[Mapping[str, Any]] = [
            {
                "id": r.id,
                "query": r.query,
                "answer": r.answer,
                "answer_type": r.answer_type,
                "options": r.options,
            }
            for r, group in zip(rows, sampled, strict=True)
            for _ in group
        ]
        totals, per_reward = combined_rewards(self.rewards, [t for group in texts for t in group], flat_rows)
        G = self.config.rollout.completions_per_prompt
        rewards_PG = torch.tensor(totals).view(-1, G)
        scale = self.policy_term.advantage_scale or VARIANTS[self.policy_term.variant].advantage_scale
        advantages_PG, metrics = group_advantages(rewards_PG, scale)
        self._last_reward_metrics = {name: float(value) for name, value in metrics.items()} | {
            name: sum(values) / len(values) for name, values in per_reward.items()
        }
        return [
            Group(row, prompt, completions, group_texts, rewards_PG[p].tolist(), advantages_PG[p])
            for p, (row, prompt, completions, group_texts) in enumerate(
                zip(rows, prompts, sampled, texts, strict=True)
            )
        ]

    def _reward_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        completions = [c for g in groups for c in g.completions]
        return {
            **self._last_reward_metrics,
            "completion_tokens": sum(len(c.ids) for c in completions) / len(completions),
            "truncated": sum(c.truncated for c in completions) / len(completions),
        }

    # ------------------------------------------------------------ updates

    def _update_all(self, step: int, groups: list[Group]) -> dict[str, float]:
        """All optimizer updates of one rollout; metrics are means over updates."""
        per_update = self.config.optim.prompts_per_update
        chunks = [groups[i : i + per_update] for i in range(0, len(groups), per_update)]
        if len(chunks) > 1:
            self._fill_logps(groups, self.policy, "old_logps")
        if self.reference is not None:
            with self.reference.active() as reference:
                self._fill_logps(groups, reference, "ref_logps")
        self._set_learning_rate(step)
        collected: list[dict[str, float]] = []
        for number, chunk in enumerate(chunks):
            pairs: list[ContrastivePair] = []
            if self.selection_term is not None:
                taken = self.pair_stream.take(self.selection_term.pairs_per_update)
                pairs = [self.pairs[self.pair_at[i]] for i in taken]
            rng = random.Random(f"{self.config.seed}:orders:{step}:{number}")
            collected.append(self.update(Update(chunk, pairs, rng)))
        per_name: dict[str, list[float]] = defaultdict(list)
        for metrics in collected:
            for name, value in metrics.items():
                per_name[name].append(value)
        return {name: sum(values) / len(values) for name, values in sorted(per_name.items())}

    def update(self, update: Update) -> dict[str, float]:
        """One optimizer update; a loss or gradient that is not finite leaves the weights as they are."""
        metrics = self.backward(update)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable, self.config.optim.max_grad_norm))
        finite = math.isfinite(norm) and math.isfinite(metrics["loss"])
        if finite:
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= self.config.optim.max_skipped_updates:
                raise NonFiniteUpdatesError(
                    f"{self.run.path}: {self.skipped_in_a_row} updates in a row with a non-finite loss or gradient; the last checkpoint is "
                    "kept. Lower optim.learning_rate or look at samples.jsonl"
                )
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return {
            **metrics,
            "grad_norm": norm if math.isfinite(norm) else 0.0,
            "skipped_updates": float(not finite),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def backward(self, update: Update) -> dict[str, float]:
        """Gradients of the weighted sum of all terms, micro-batch by micro-batch."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {"loss": 0.0}
        for term in self.terms:
            for share in term.shares(self.policy, update, self.config.optim.tokens_per_micro_batch):
                with self.accelerator.autocast():
                    loss, parts = share()
                self.accelerator.backward(term.weight * loss)
                metrics["loss"] += term.weight * float(loss.detach())
                for name, value in parts.items():
                    metrics[name] = metrics.get(name, 0.0) + value
        return metrics

    def _set_learning_rate(self, step: int) -> None:
        optim = self.config.optim
        factor = min(1.0, step / optim.warmup_steps) if optim.warmup_steps else 1.0
        if optim.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate * factor

    @torch.no_grad()
    def _fill_logps(self, groups: Sequence[Group], policy: Policy, name: str) -> None:
        budget = self.config.optim.tokens_per_micro_batch
        for batch in under_budget(groups, lambda g: g.packed().n_tokens(), budget):
            with self.accelerator.autocast():
                per_group, _ = completion_logps(policy, batch, self.config.rollout.temperature)
            for group, logps in zip(batch, per_group, strict=True):
                setattr(group, name, logps)

    # ------------------------------------------------------------ evaluation, samples, checkpoints

    def _evaluate_if_due(self, step: int) -> None:
        every = self.config.log.eval_every
        if every and step % every == 0 and step not in [done["step"] for done in self.run.read("evals")]:
            with self.accelerator.autocast():  # the precision of training
                measured = self.held_out.measure(self.policy, self.config.rollout.max_new_tokens)
            self.run.write("evals", {"step": step, **measured})

    def _write_samples(self, step: int, groups: Sequence[Group]) -> None:
        for g in groups[: self.config.log.samples_per_step]:
            self.run.write(
                "samples",
                {"step": step, "id": g.row.id, "query": g.row.query, "answer": g.row.answer, "completions": g.texts, "rewards": g.rewards},
            )  # fmt: skip

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "data": self.data_hashes,
            "questions": self.question_stream.position,
            "pairs": self.pair_stream.position,
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        folder = self.run.path / "checkpoints"
        save_checkpoint(folder, self.policy, self.optimizer, state, self.config.log.keep_checkpoints)

    def _resume(self) -> int:
        place = latest_checkpoint(self.run.path / "checkpoints")
        if place is None:
            self.run.truncate(0)
            return 0
        state = load_checkpoint(place, self.policy, self.optimizer)
        if changed := [name for name, found in self.data_hashes.items() if state["data"].get(name) != found]:
            raise InputError(
                f"{self.run.path}: resumed on other data, data.{changed[0]} was changed since {place.name}; restore it or start anew"
            )
        self.question_stream.position, self.pair_stream.position = state["questions"], state["pairs"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.run.truncate(state["step"])
        return int(state["step"])


def _bar_fields(metrics: dict[str, Any]) -> dict[str, str]:
    selection = metrics.get("selection_accuracy")
    return {
        "reward": f"reward {metrics['reward_mean']:.2f}",
        "selection": "" if selection is None else f"selection {selection:.2f}",
    }


def _seed(seed: int, step: int) -> int:
    return random.Random(f"{seed}:rollout:{step}").getrandbits(62)
