r"""Whether something simple tells context from confounder, or the answer from the query: then a policy can learn that instead of looking.

answers   How often the most frequent answer to a query is the right one (the prior of the answer), by domain. A query stands for its
          template: numbers in it do not count. Templates of fewer than `TEMPLATE_ROWS` rows say nothing and are left out.
edited    Share of pairs whose context is the edited side (`provenance["edited"]`: "context" or "confounder"), overall and by domain.
cues      For every cue the share of pairs whose context has the larger value, ties left out: pixels, bytes of the file, mean brightness,
          colourfulness (Hasler and Suesstrunk, 2003), sharpness (mean absolute difference of neighbouring pixels); of texts the characters.

In a balanced set each such share k / n is that of a fair coin, whose exact two-sided p is

    min(1, 2 * sum_{i <= min(k, n - k)} C(n, i) / 2^n)

A share is reported as unbalanced when p, corrected by Holm (1979) over all of them, is at most `ALPHA`, and it is at least `DEVIATION`
away from a half: in a balanced set that happens in at most 1% of all cases, and in a large one not for what nobody could use.

Left out: cues that combine several measures, and cues by domain.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from vlm_contextrl.data_recipes.inputs import row_input
from vlm_contextrl.pairs import ContrastivePair, EncodedImage, Row

ALPHA = 0.01
DEVIATION = 0.05
TEMPLATE_ROWS = 5
IDS = 1000  # named per finding
EDITED = "edited"


def balance(path: Path, licence: str = "") -> dict[str, Any]:
    """The balance of a folder of pairs, or only the answers of one of questions; licence: for rows of foreign formats that name none.

    answers, edited, cues: as above; None where nothing could be measured. unbalanced: findings, each with its name, share, n, p, p_holm,
    a `text`, and the `ids` of the pairs that the cue gives away (at most `IDS`; `ids_n` counts all).
    """
    return balance_of(row_input(path, licence).rows)


def balance_of(rows: Iterable[Row]) -> dict[str, Any]:
    """As `balance`, of rows at hand; one pass."""
    asked: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    larger: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    n_rows = 0
    for row in rows:
        n_rows += 1
        asked[row.domain, template(row.query)][_answer(row)] += 1
        if not isinstance(row, ContrastivePair):
            continue
        edited = row.provenance.get(EDITED)
        if edited in ("context", "confounder"):
            for name in (EDITED, f"{EDITED} in {row.domain or '(no domain)'}"):
                larger[name][edited == "context"].append(row.id)
        context, confounder = cues(row.context), cues(row.confounder)
        for name, value in context.items():
            sides = larger[name]  # a cue without a difference counts with n = 0
            if value != confounder[name]:
                sides[value > confounder[name]].append(row.id)
    shares = {name: share(len(sides[True]), len(sides[False])) for name, sides in larger.items()}
    for name, p in holm({name: found["p"] for name, found in shares.items()}).items():
        shares[name]["p_holm"] = p
    edited_shares = {name: shares.pop(name) for name in list(shares) if name.startswith(EDITED)}
    unbalanced = [
        _finding(name, found, larger[name])
        for name, found in (edited_shares | shares).items()
        if found["n"] and found["p_holm"] <= ALPHA and abs(found["share"] - 0.5) >= DEVIATION
    ]
    domains = {
        name.removeprefix(f"{EDITED} in "): found for name, found in edited_shares.items() if name != EDITED
    }
    return {
        "rows": n_rows,
        "answers": answer_prior(asked),
        "edited": {**edited_shares[EDITED], "domains": domains} if edited_shares else None,
        "cues": shares or None,
        "unbalanced": unbalanced,
    }


def template(query: str) -> str:
    """A query without case, spacing and numbers."""
    return re.sub(r"\d+(?:[.,]\d+)*", "#", " ".join(query.casefold().split()))


def _answer(row: Row) -> str:
    return row.options[ascii_uppercase.index(row.answer)] if row.answer_type == "choice" else row.answer


def answer_prior(asked: Mapping[tuple[str, str], Counter[str]]) -> dict[str, Any] | None:
    """majority_share: over the rows of all templates with enough rows; None without any. asked: (domain, template) -> answers."""
    told: dict[str, list[Counter[str]]] = defaultdict(list)
    for (domain, _), answers in asked.items():
        if answers.total() >= TEMPLATE_ROWS:
            told[domain].append(answers)
    domains = {domain: _majority(counters) for domain, counters in sorted(told.items())}
    return (
        {**_majority([c for counters in told.values() for c in counters]), "domains": domains}
        if told
        else None
    )


def _majority(counters: Sequence[Counter[str]]) -> dict[str, Any]:
    n, most = sum(c.total() for c in counters), sum(max(c.values()) for c in counters)
    return {"majority_share": most / n, "n": n, "templates": len(counters)}


def cues(side: EncodedImage | str) -> dict[str, float]:
    """What is easy to measure about a side of a pair."""
    if isinstance(side, str):
        return {"characters": len(side)}
    picture = side.decode()
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.float32), -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue]).reshape(2, -1)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
    return {
        "pixels": picture.width * picture.height,
        "file bytes": len(side.data),
        "brightness": round(float(grey.mean()), 6),
        "colourfulness": round(
            float(np.hypot(*opponents.std(axis=1)) + 0.3 * np.hypot(*opponents.mean(axis=1))), 6
        ),
        "sharpness": round(
            float(sum(step.sum() for step in steps) / max(1, sum(step.size for step in steps))), 6
        ),
    }


def share(k: int, other: int) -> dict[str, Any]:
    """{share, n, p} of k against `other` tosses of a fair coin; share is None for no tosses."""
    n = k + other
    return {"share": k / n if n else None, "n": n, "p": two_sided_p(k, n)}


def two_sided_p(k: int, n: int) -> float:
    """Exact two-sided p of k heads in n tosses of a fair coin."""
    tail = range(min(k, n - k) + 1)
    if n <= 1000:
        return float(min(1.0, 2 * sum(math.comb(n, i) for i in tail) / 2**n))
    # The same terms through logarithms: the numbers above have as many bits as there are tosses.
    log_terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in tail
    )
    return float(min(1.0, 2 * math.fsum(map(math.exp, log_terms))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number: the i-th smallest of m times (m - i + 1), never less than a smaller one's."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def _finding(name: str, found: Mapping[str, Any], sides: Mapping[bool, Sequence[str]]) -> dict[str, Any]:
    context_larger = found["share"] > 0.5
    ids = sides[context_larger]
    which = "context" if context_larger else "confounder"
    said = "edited" if name.startswith(EDITED) else f"larger in {name}"
    if name.startswith(EDITED) and name != EDITED:
        said = f"edited{name.removeprefix(EDITED)}"
    text = f"the {which} is {said} in {len(ids)} of {found['n']} pairs ({len(ids) / found['n']:.1%}), p = {found['p_holm']:.2g}"
    return {"name": name, **found, "text": text, "ids_n": len(ids), "ids": list(ids[:IDS])}
