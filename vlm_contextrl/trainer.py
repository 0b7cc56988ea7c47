"""The training loop: rollouts, rewards, advantages, weighted terms, one optimizer; resumable to the bit on a CPU.

Every random choice is a function of (seed, step): the order of questions and pairs, the sampling of completions, the option orders. A
checkpoint therefore holds weights, optimizer and two stream positions, and a resumed run repeats the unbroken one.

Over several processes every rank takes its part of each update's questions and pairs, groups whole. Adapters are replicated and their
gradients added once per update; full fine-tuning is sharded (sharding.py).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from vlm_contextrl.checkpoints import export, load_checkpoint, save_checkpoint, usable_checkpoint
from vlm_contextrl.config import RunConfig
from vlm_contextrl.errors import ContextRLError, InputError
from vlm_contextrl.evaluation import HeldOut
from vlm_contextrl.models import autocast, load_policy, product_dtype
from vlm_contextrl.packing import under_budget
from vlm_contextrl.pairs import ContrastivePair, QuestionRow
from vlm_contextrl.policy import Policy
from vlm_contextrl.prompt_lengths import Overlong, PairLength, question_length
from vlm_contextrl.ranks import Ranks
from vlm_contextrl.reference_model import ReferenceModel
from vlm_contextrl.rewards import load_reward
from vlm_contextrl.rollout import Engine, OwnEngine
from vlm_contextrl.runlog import RunDirectory, bar_fields, check_run_folder, training_bar
from vlm_contextrl.scored_rollouts import ScoredRollouts, UpdateGroups
from vlm_contextrl.sharding import clip_gradients, gathered, idle_loss, is_sharded, shard, untouched_vision
from vlm_contextrl.stages import build_stages, other_contexts
from vlm_contextrl.storage import content_hash
from vlm_contextrl.terms import (
    Group,
    Metrics,
    PreparedTerm,
    Share,
    Update,
    completion_logps,
    mean_over_updates,
)
from vlm_contextrl.training_data import TrainingData
from vlm_contextrl.training_rows import OtherContexts, training_rows


class NonFiniteUpdatesError(ContextRLError, RuntimeError):
    """Too many updates in a row had a loss or gradient that is not a number."""


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run (or resume) a training run; returns the last step's metrics. The result is in `run_dir/final`.

    Under torchrun every process calls this, and the first one writes.
    """
    ranks = Ranks.join()
    metrics = _train(config, run_dir, ranks, resume, on_step)
    ranks.leave()  # not after an error: the others may be waiting for this rank, and torchrun ends them
    return metrics


def _train(
    config: RunConfig,
    run_dir: Path,
    ranks: Ranks,
    resume: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    if ranks.is_first:
        check_run_folder(run_dir, config, resume=resume)
    for name in config.policy_term.rewards:
        load_reward(name, config.data.prompt_style)
    questions, pairs = training_rows(config.data, config.seed)
    others = other_contexts(config, pairs)
    held_out = HeldOut(config.data)
    policy = load_for_training(config, ranks)
    if config.log.eval_every:
        held_out.check(policy, ranks)
    rejects = Overlong(config, ranks)
    question_at = rejects.usable(policy, questions, "questions", question_length)
    pair_at = rejects.usable(policy, pairs, "pairs", PairLength(config, others)) if pairs else []
    run = RunDirectory(run_dir, config, resume=resume, writes=ranks.is_first)
    if ranks.is_first:
        rejects.write(run)
    trainer = Trainer(config, run, ranks, policy, questions, question_at, pairs, pair_at, held_out, others)
    return trainer.fit(resume, on_step)


def load_for_training(config: RunConfig, ranks: Ranks) -> Policy:
    """The policy on this rank's device."""
    torch.manual_seed(config.seed)  # adapters start from random numbers
    return load_policy(config.model, ranks.device)


class Trainer:
    """One policy, in one process or as one of several ranks."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        ranks: Ranks,
        policy: Policy,
        questions: Sequence[QuestionRow],
        question_at: list[int],
        pairs: Sequence[ContrastivePair],
        pair_at: list[int],
        held_out: HeldOut,
        others: OtherContexts | None = None,
    ) -> None:
        self.config, self.run, self.ranks, self.policy = config, run, ranks, policy
        self.data = TrainingData(questions, question_at, pairs, pair_at, config.seed)
        self.held_out = held_out
        folders = {"questions": config.data.questions, "pairs": config.data.pairs}
        self.data_hashes = {name: content_hash(folder) for name, folder in folders.items() if folder}
        self.stages = build_stages(config, self.data.n_questions, self.data.n_pairs, others)
        self.steps = self.stages[-1].last
        self.stage = self.stages[0]
        self.terms = list(self.stage.terms)
        if ranks.world > 1 and config.model.tuning == "full":
            shard(policy, ranks, product_dtype(config.model))
        self.trainable = [p for p in policy.parameters() if p.requires_grad]
        if not is_sharded(policy):
            ranks.copy_from_first(p.detach() for p in self.trainable)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay
        )
        needs_reference = config.policy_term.kl_coef > 0
        self.reference = ReferenceModel(config.model, policy, ranks) if needs_reference else None
        self.rollouts = ScoredRollouts(config, policy, ranks, self._engine(), self.autocast)
        self.skipped_in_a_row = 0
        self.warned_of_gap = False

    def _engine(self) -> Engine:
        rollout, data = self.config.rollout, self.config.data
        if rollout.engine == "transformers":
            return OwnEngine(self.config.optim.tokens_per_micro_batch, rollout.sequences_at_once)
        from vlm_contextrl.vllm_engine import VllmEngine

        return VllmEngine(
            self.config.model,
            self.policy.processor,
            max_model_len=data.max_prompt_tokens + rollout.max_new_tokens,
            max_images=max(
                2 if any(stage.selections_per_update for stage in self.stages) else 1, self.data.most_images()
            ),
            gpu_memory_share=rollout.vllm_memory_share,
            seed=self.config.seed,
        )

    # ------------------------------------------------------------ the loop

    def fit(self, resume: bool, on_step: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        """All steps from the checkpoint (or from the start) to the end."""
        start = self._resume() if resume else 0
        metrics: dict[str, Any] = self.ranks.from_first(lambda: (self.run.read("metrics") or [{}])[-1])
        if start:
            self._evaluate_if_due(start)  # a run that was stopped between a checkpoint and its evaluation
        with training_bar(shown=self.ranks.is_first) as bar:
            task = bar.add_task("training", total=self.steps, completed=start, reward="", selection="")
            for step in range(start + 1, self.steps + 1):
                metrics = self.step(step)
                if step % self.config.log.save_every == 0 or step == self.steps:
                    self._save(step)
                self._evaluate_if_due(step)
                bar.update(task, completed=step, **bar_fields(metrics))
                if on_step:
                    on_step(metrics)
        export(self.policy, self.run.path / "final", writes=self.ranks.is_first)
        self.ranks.wait()
        return metrics

    def step(self, step: int) -> dict[str, Any]:
        """One rollout, if the stage has any, and its updates, written to the run directory."""
        began, cpu_began = time.monotonic(), time.process_time()
        self._enter_stage_of(step)
        updates, about_rollouts = self.rollouts.of_step(step, self.data, self.stage)
        rolled = time.monotonic()
        updated = self._update_all(step, updates)
        metrics = {"step": step, **about_rollouts, **updated}
        self._watch_gap(metrics)
        self.run.write("metrics", metrics)
        for groups in ([g for u in updates for g in u.questions], [g for u in updates for g in u.selections]):
            self._write_samples(step, groups)
        self.run.write(
            "timings",
            {
                "step": step,
                "rollout_s": rolled - began,
                "update_s": time.monotonic() - rolled,
                "cpu_s": time.process_time() - cpu_began,
                "host_mib": psutil.Process().memory_info().rss / 2**20,
            },
        )
        return metrics

    def _enter_stage_of(self, step: int) -> None:
        """A stage has its own terms, and begins with an optimizer that remembers nothing."""
        stage = next(stage for stage in self.stages if step <= stage.last)
        if stage is not self.stage:
            self.stage, self.terms = stage, list(stage.terms)
            if step == stage.first:
                self.optimizer.state.clear()

    def autocast(self) -> Any:
        """Matrix products in bfloat16 where the configuration says so."""
        return autocast(self.config.model, self.ranks.device)

    def _watch_gap(self, metrics: dict[str, Any]) -> None:
        """Say once that the completions are not those of the policy that trains on them."""
        gap, limit = metrics.get("rollout_gap", 0.0), self.config.rollout.max_logp_gap
        if gap > limit and not self.warned_of_gap and self.ranks.is_first:
            self.warned_of_gap = True
            print(
                f"step {metrics['step']}: rollout_gap is {gap:.3g} nats per token, over rollout.max_logp_gap {limit:g}: sampling and "
                "training round differently, or one of them is wrong; look at model.dtype, model.autocast, rollout.engine",
                file=sys.stderr,
            )

    # ------------------------------------------------------------ updates

    def _update_all(self, step: int, updates: Sequence[UpdateGroups]) -> dict[str, float]:
        """All optimizer updates of one rollout; metrics are means over updates."""
        questions = [group for update in updates for group in update.questions]
        selections = [group for update in updates for group in update.selections]
        # Never both in one forward: its last digits depend on all that is in it.
        for groups in (questions, selections):
            if len(updates) > 1:
                self._fill_logps(groups, self.policy, "old_logps")
            if self.reference is not None:
                with self.reference.active() as reference:
                    self._fill_logps(groups, reference, "ref_logps")
        self._prepare(step, questions)
        self._set_learning_rate(step)
        collected: list[dict[str, float]] = []
        for number, own in enumerate(updates):
            pairs = self.data.pairs(self.stage.pairs_per_update, self.ranks.part)
            order_seed = f"{self.config.seed}:orders:{step}:{number}"
            update = Update(own.questions, pairs, order_seed, self.ranks.total, own.selections)
            collected.append(self.update(update))
        return mean_over_updates(collected)

    def _prepare(self, step: int, groups: Sequence[Group]) -> None:
        for term in self.terms:
            if isinstance(term, PreparedTerm):
                with self.autocast():
                    budget = self.config.optim.tokens_per_micro_batch
                    term.prepare(self.policy, groups, f"{self.config.seed}:prepare:{step}", budget)

    def update(self, update: Update) -> dict[str, float]:
        """One optimizer update; a loss or gradient that is not finite leaves the weights as they are."""
        metrics = self.backward(update)
        norm = clip_gradients(self.trainable, self.config.optim.max_grad_norm)
        finite = math.isfinite(norm) and math.isfinite(metrics["loss"])
        if finite:
            self.optimizer.step()
            self.skipped_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)  # gradients would lie there through the next rollout
        if not finite:
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
        """Gradients of the weighted sum of all terms, micro-batch by micro-batch, summed over the ranks; metrics likewise.

        A term with weight 0 is measured and leaves no gradient, not even zeros, by which an optimizer would move weights.
        """
        metrics: dict[str, float] = {"loss": 0.0}
        tokens_before = self.policy.trained_tokens
        for term in self.terms:
            shares = list(term.shares(self.policy, update, self.config.optim.tokens_per_micro_batch))
            if not term.weight:
                self._measure(shares, metrics)
                continue
            if is_sharded(self.policy):
                # Ranks meet in every layer, so all make as many passes as the busiest.
                missing = max(self.ranks.gather(len(shares))) - len(shares)
                shares += [lambda: (idle_loss(self.policy), {})] * missing
            for share in shares:
                with self.autocast():
                    loss, parts = share()
                (term.weight * loss + untouched_vision(self.policy)).backward()
                metrics["loss"] += term.weight * float(loss.detach())
                _add(parts, metrics)
        if not is_sharded(self.policy):
            self.ranks.add_gradients(self.trainable)
        metrics["trained_tokens"] = float(self.policy.trained_tokens - tokens_before)
        return self.ranks.total_by_name(metrics)

    @torch.no_grad()
    def _measure(self, shares: Sequence[Share], metrics: dict[str, float]) -> None:
        with gathered(self.policy), self.autocast():
            for share in shares:
                _add(share()[1], metrics)

    def _set_learning_rate(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.learning_rate_at(step, self.config.optim)

    @torch.no_grad()
    def _fill_logps(self, groups: Sequence[Group], policy: Policy, name: str) -> None:
        budget = self.config.optim.tokens_per_micro_batch
        with gathered(policy), self.autocast():
            for batch in under_budget(groups, lambda g: g.packed().n_tokens(), budget):
                per_group, _ = completion_logps(policy, batch, self.config.rollout.temperature)
                for group, logps in zip(batch, per_group, strict=True):
                    setattr(group, name, logps)

    # ------------------------------------------------------------ evaluation, samples, checkpoints

    def _evaluate_if_due(self, step: int) -> None:
        every = self.config.log.eval_every
        if not every or step % every:
            return
        if step not in self.ranks.from_first(lambda: [each["step"] for each in self.run.read("evals")]):
            with gathered(self.policy), self.autocast():  # the precision of training
                measured = self.held_out.measure(
                    self.policy,
                    self.config.rollout.max_new_tokens,
                    self.config.optim.tokens_per_micro_batch,
                    self.ranks,
                )
            self.run.write("evals", {"step": step, **measured})  # by the first rank
            self.ranks.wait()

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
            **self.data.positions(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        folder = self.run.path / "checkpoints"
        keep, first = self.config.log.keep_checkpoints, self.ranks.is_first
        save_checkpoint(folder, self.policy, self.optimizer, state, keep, writes=first)
        self.ranks.wait()

    def _resume(self) -> int:
        place = self.ranks.from_first(lambda: usable_checkpoint(self.run.path / "checkpoints"))
        if place is None:
            self.run.truncate(0)
            return 0
        state = load_checkpoint(place, self.policy, self.optimizer)
        if changed := [name for name, found in self.data_hashes.items() if state["data"].get(name) != found]:
            raise InputError(
                f"{self.run.path}: resumed on other data, data.{changed[0]} was changed since {place.name}; restore it or start anew"
            )
        self.data.go_to(state)
        self.skipped_in_a_row = state["skipped_in_a_row"]
        self.run.truncate(state["step"])
        return int(state["step"])


def _add(parts: Metrics, metrics: dict[str, float]) -> None:
    for name, value in parts.items():
        metrics[name] = metrics.get(name, 0.0) + value
