"""One of the twelve benchmarks, from its rows to `result.json`.

The harness hands all requests of a task to the model at once and keeps its own cache only afterwards; here every batch is on disk before
the next one starts (`journal.py`). A row that cannot be asked is a reject with its reason, in `rejects.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_contextrl.errors import ConfigError, DataError
from vlm_contextrl.eval import harness
from vlm_contextrl.eval.data_roots import fingerprint
from vlm_contextrl.eval.journal import Key, expect, opened_journal, read_journal
from vlm_contextrl.eval.judge import Judge
from vlm_contextrl.eval.questions import judge_by_rules
from vlm_contextrl.eval.registry import Benchmark
from vlm_contextrl.eval.run_folders import read_object
from vlm_contextrl.eval.scoring import measures, recorded_question, scored_samples
from vlm_contextrl.eval.settings import EvalSettings, digest
from vlm_contextrl.result_files import write_json, write_jsonl


def run_benchmark(
    benchmark: Benchmark, folder: Path, settings: EvalSettings, weights: Mapping[str, str | None]
) -> None:
    """Answer what is not answered yet, score all of it, write `samples.jsonl` and then `result.json`.

    weights: content hashes of model and adapter. Raises ConfigError when `folder` holds answers made otherwise, DataError when the rows
    cannot be had or none of them can be asked.
    """
    content = _content(benchmark, settings, weights)
    _same_content(folder, content)
    if _is_finished(folder, digest(content), settings):
        return
    harness.prepare_imports(offline=settings.data_root is not None)
    from vlm_contextrl.eval.model import ContextRLModel

    tasks = {part.name: harness.build_task(benchmark, part, settings) for part in benchmark.parts}
    wanted = [(name, i) for name, task in tasks.items() for i in range(_n_rows(task, settings.limit))]
    model = ContextRLModel(settings.model, **settings.model_dump(exclude={"model"}))
    with opened_journal(folder, model.ranks.rank) as journal:
        if model.ranks.is_first:
            write_json(folder / "content.json", content)
            expect(folder, len(wanted))
        for part in benchmark.parts:
            model.memory = harness.RunMemory(journal, part)
            harness.run_task(model, tasks[part.name], settings.limit)
    model.ranks.wait()
    if model.ranks.is_first:
        _finish(benchmark, folder, settings, tasks, wanted, digest(content))
    model.ranks.leave()


def _n_rows(task: Any, limit: int | None) -> int:
    rows = len(task.test_docs())
    return min(rows, limit or rows)


def _finish(
    benchmark: Benchmark,
    folder: Path,
    settings: EvalSettings,
    tasks: dict[str, Any],
    wanted: list[Key],
    content_hash: str,
) -> None:
    answered = {(line["part"], line["doc_id"]): line for line in read_journal(folder)}
    missing = [key for key in wanted if key not in answered]
    assert not missing, f"{len(missing)} samples without an answer, first {missing[0]}"
    rejects = [
        {"part": part, "doc_id": doc_id, "reason": answered[part, doc_id]["rejected"]}
        for part, doc_id in wanted
        if "rejected" in answered[part, doc_id]
    ]
    write_jsonl(folder / "rejects.jsonl", rejects)
    usable = [answered[key] for key in wanted if "rejected" not in answered[key]]
    if not usable:
        raise DataError(
            f"{benchmark.name}: none of {len(wanted)} rows can be asked; {rejects[0]['reason']}"
            if rejects
            else f"{benchmark.name}: there are no rows"
        )
    lines, scorer = _unique_ids(usable), judge_by_rules
    if settings.judge:
        judge = Judge(settings.judge, benchmark.name, folder)
        judge.ask_ahead((recorded_question(line), line["completion"]) for line in lines)
        scorer = judge.score
    samples = scored_samples(lines, scorer)
    write_jsonl(folder / "samples.jsonl", samples)
    stock, stock_error = _stock(benchmark, tasks, samples)
    result = {
        **measures(benchmark, samples),
        "rejects": len(rejects),
        "stock": stock,
        "stock_metric": benchmark.stock.metric if benchmark.stock else None,
        "stock_error": stock_error,
        "benchmark": benchmark.title,
        "split": benchmark.split,
        "style": settings.style,
        "max_new_tokens": settings.max_new_tokens,
        "limit": settings.limit,
        "judge": settings.judge.model if settings.judge else None,
        "content_hash": content_hash,
    }
    write_json(folder / "result.json", result)


def _unique_ids(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that a published set holds twice share an id; the later ones get the number of their row."""
    seen: set[tuple[str, str]] = set()
    unique = []
    for line in lines:
        key = (line["part"], line["id"])
        unique.append({**line, "id": f"{line['id']}~{line['doc_id']}"} if key in seen else line)
        seen.add(key)
    return unique


def _stock(
    benchmark: Benchmark, tasks: dict[str, Any], samples: list[dict[str, Any]]
) -> tuple[float | None, str | None]:
    """The harness's metric: over all samples, or the mean over parts as ours is."""
    if benchmark.stock is None:
        return None, "its scorer asks a judge model"
    scores = []
    try:
        for name, task in tasks.items():
            completions = {s["doc_id"]: s["completion"] for s in samples if s["part"] == name}
            scores.append((len(completions), harness.stock_score(task, benchmark.stock, completions)))
    except harness.StockScorerError as error:
        return None, str(error)
    weights = [n if benchmark.pooled else 1 for n, _ in scores]
    return sum(w * score for w, (_, score) in zip(weights, scores, strict=True)) / sum(weights), None


def _content(
    benchmark: Benchmark, settings: EvalSettings, weights: Mapping[str, str | None]
) -> dict[str, Any]:
    """Everything that answers depend on."""
    return {
        **settings.what_shapes_answers(),
        "weights": dict(weights),
        "data": {part.name: fingerprint(part, settings.data_root) for part in benchmark.parts},
    }


def _same_content(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "content.json"
    if not path.exists():
        return
    before = read_object(path)
    changed = [key for key in content if before.get(key) != content[key]]
    if changed:
        key = changed[0]
        found = (
            f"{key} was {before.get(key)!r} and is {content[key]!r}"
            if key not in ("weights", "data")
            else f"other {key} than before"
        )
        raise ConfigError(
            f"{folder}: holds answers made otherwise ({found}); name another --out, or delete the folder"
        )


def _is_finished(folder: Path, content_hash: str, settings: EvalSettings) -> bool:
    path = folder / "result.json"
    if not path.exists():
        return False
    result = read_object(path)
    judge = settings.judge.model if settings.judge else None
    return (result["content_hash"], result["limit"], result["judge"]) == (content_hash, settings.limit, judge)
