"""Selection probes as benchmarks: published sets and datasets of pairs, by logits or by generation, with resume.

By logits (default) a pair is asked by `vlm_contextrl.probe`. By generation the same prompts, in both orders, both directions and with the
context in both places, are answered greedily and `selection_letter` reads the reply. The measures stand in `selection_records.py`.

    OUT/per_pair.jsonl    a header, then one record per pair, appended after every batch: the same call goes on after a kill
    OUT/rejects.jsonl     {"id", "reason"} of what made no pair
    OUT/result.json       the measures, and what was measured

Source of the probe: arXiv 2606.17053. Left out: other engines, and that pairs of one scene share pictures when intervals are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlm_contextrl.answers import selection_letter
from vlm_contextrl.errors import ConfigError
from vlm_contextrl.eval.selection_records import PairJournal, Record, measures, pair_digest
from vlm_contextrl.eval.selection_sets import SELECTION_SETS, read_selection_set
from vlm_contextrl.eval.settings import digest
from vlm_contextrl.packing import under_budget
from vlm_contextrl.pairs import ContrastivePair, EncodedImage
from vlm_contextrl.policy import Policy
from vlm_contextrl.probe import contexts, pair_margins, selection_prompt
from vlm_contextrl.processing import EncodedPrompt
from vlm_contextrl.result_files import write_json, write_jsonl
from vlm_contextrl.rollout import sample
from vlm_contextrl.storage import read_pairs

Mode = Literal["logits", "generation"]
Progress = Callable[[int, int], None]  # pairs done, pairs in all

MAX_NEW_TOKENS = 16  # a bare letter is asked for
BUDGET_TOKENS = 16384  # of one forward or prefill


def run_selection(
    name: str,
    policy: Policy,
    *,
    out: Path,
    content: Mapping[str, Any],
    mode: Mode = "logits",
    data_root: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_pairs: int = 16,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Ask a model which of two contexts supports an answer, for every pair of a set. The result is also in `out/result.json`.

    name: a published set or a folder of pairs. content: JSON values that say what the model is and how it sees pictures; `model`,
    `adapter` and `dtype` among them are told in the result. data_root: local data instead of the hub. limit: the first N pairs.
    max_new_tokens: of a reply, by generation. batch_pairs: asked together and then written. Raises ConfigError when `out` holds answers
    of another `content` or mode, DataError for a set that cannot be read or has no pair.
    """
    chosen = SELECTION_SETS.get(name)
    pairs, rejects = _pairs(name, data_root, limit)
    settings = {"mode": mode, "max_new_tokens": max_new_tokens if mode == "generation" else None}
    header = {**settings, "content": digest(dict(content))}
    journal = PairJournal(out / "per_pair.jsonl", header)
    digests: dict[str, str] = {}
    licences: set[str] = set()
    records: list[Record] = []
    progress(0, len(pairs))
    for start in range(0, len(pairs), batch_pairs):
        batch = pairs[start : start + batch_pairs]
        digests |= {pair.id: pair_digest(pair) for pair in batch}
        licences |= {pair.provenance["licence"] for pair in batch}
        if new := [pair for pair in batch if journal.find(pair.id, digests[pair.id]) is None]:
            answered = (
                pair_margins(policy, new, batch_pairs=len(new), budget_tokens=BUDGET_TOKENS)
                if mode == "logits"
                else _by_generation(policy, new, max_new_tokens)
            )
            journal.append([record | {"digest": digests[record["id"]]} for record in answered])
        for pair in batch:
            record = journal.find(pair.id, digests[pair.id])
            assert record is not None, pair.id
            records.append(record)
        progress(len(records), len(pairs))
    result = {
        **{key: content.get(key) for key in ("model", "adapter", "dtype")},
        "device": policy.device.type,
        "pairs": chosen.part.dataset if chosen else name,
        "set": chosen.title if chosen else Path(name).resolve().name,
        "split": chosen.part.split if chosen else None,
        "licence": ", ".join(sorted(licences)),
        **settings,
        "limit": limit,
        "inputs": len(pairs) + len(rejects),
        "rejects": {"pairs": len(rejects)},
        "content_hash": digest([header, digests]),
        **measures(records),
    }
    write_jsonl(out / "rejects.jsonl", ({"id": reject_id, "reason": reason} for reject_id, reason in rejects))
    write_json(out / "result.json", result)
    return result


def _pairs(
    name: str, data_root: Path | None, limit: int | None
) -> tuple[Sequence[ContrastivePair], Sequence[tuple[str, str]]]:
    """Pairs and (id, reason) of rejects."""
    if name in SELECTION_SETS:
        published = read_selection_set(SELECTION_SETS[name], data_root, limit)
        return published, published.rejects
    if not Path(name).exists():
        raise ConfigError(f"{name!r} is no dataset folder and none of {', '.join(SELECTION_SETS)}")
    pairs = read_pairs(Path(name))
    return pairs if limit is None else pairs[:limit], getattr(pairs, "rejects", ())


# ---------------------------------------------------------------- asking


def _by_generation(policy: Policy, pairs: Sequence[ContrastivePair], max_new_tokens: int) -> list[Record]:
    prompts: list[EncodedPrompt] = []
    for pair in pairs:
        good, bad = contexts(policy.processor, pair)
        shown = [(pair, good, bad), (pair, bad, good), (pair, good, good), (pair, good, good)]
        reverse = pair.reversed()
        if reverse is not None:
            shown += [(reverse, bad, good), (reverse, good, bad)]
        prompts += [selection_prompt(policy.processor, asked, (a, b)) for asked, a, b in shown]
    replies = iter(_replies(policy, prompts, max_new_tokens))
    records = []
    for pair in pairs:
        texts = [next(replies) for _ in range(4 if pair.confounder_answer is None else 6)]
        letters = [_letter(text, pair) for text in texts]
        records.append({
            "id": pair.id, "domain": pair.domain, "choices": letters[:2], "reverse_choices": letters[4:] or None,
            "control_choices": letters[2:4], "replies": texts[:2],
        })  # fmt: skip
    return records


def _replies(policy: Policy, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[str]:
    was_training = policy.training
    policy.eval()
    replies = []
    for some in under_budget(prompts, len, BUDGET_TOKENS):
        for (completion,) in sample(policy, some, 1, max_new_tokens=max_new_tokens, temperature=0):
            replies.append(policy.processor.decode(completion.ids.tolist()))
    policy.train(was_training)
    return replies


def _letter(reply: str, pair: ContrastivePair) -> str | None:
    return selection_letter(reply, "image" if isinstance(pair.context, EncodedImage) else "text")
