"""What the app knows of a dataset, and which pairs a filter leaves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.app_data import break_picture, colour_pair, write_pairs
from vlm_contextrl.app.catalogue import MEASURES, Catalogue, open_catalogue, score_of, verdict_of
from vlm_contextrl.app.decisions import STATES
from vlm_contextrl.app.facets import clicked, facets_html, filter_words
from vlm_contextrl.app.filters import Filter, matching
from vlm_contextrl.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    verified = {"verifier": {"context_share": 1.0, "confounder_share": 0.25}}
    pairs = [colour_pair(n) for n in range(5)] + [colour_pair(5, verdicts=verified)]
    return write_pairs(tmp_path_factory.mktemp("catalogue") / "pairs", pairs)


@pytest.fixture
def catalogue(folder: Path) -> Catalogue:
    return open_catalogue(folder)


def left(catalogue: Catalogue, asked: Filter, **states: str) -> list[str]:
    codes = np.array([STATES.index(states.get(name, "undecided")) for name in catalogue.ids])
    return [catalogue.ids[i] for i in matching(catalogue, codes, asked)]


def test_columns(catalogue: Catalogue) -> None:
    assert catalogue.ids == [f"n{n}" for n in range(6)]
    assert [catalogue.names["domain"][c] for c in catalogue.codes["domain"]] == ["shapes", "charts"] * 3
    assert catalogue.measures["similarity"].tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert math.isnan(catalogue.measures["score"][0])
    assert catalogue.measures["score"][5] == 0.75  # the smaller of 1.0 and 1 - 0.25
    assert len({*catalogue.keys}) == 6
    assert all(key.isalnum() for key in catalogue.keys)


@pytest.mark.parametrize(
    ("verdicts", "said", "score"),
    [
        ({}, "(none)", math.nan),
        ({"exact": {"changed_fraction": 0.1}}, "exact checks only", math.nan),
        ({"verifier": {"context_share": 0.9, "confounder_share": 0.2}}, "verifier agrees", 0.8),
        ({"verifier": {"context_share": 0.9, "confounder_share": 0.7}}, "verifier disagrees", 1 - 0.7),
        ({"verifier": {}, "human": {"decision": "accept"}}, "human: accept", math.nan),
        ({"verifier": "spoilt"}, "(none)", math.nan),
        ({"judge": {"answer": "A"}}, "judge", math.nan),
    ],
)
def test_verdicts(verdicts: dict[str, object], said: str, score: float) -> None:
    assert verdict_of(verdicts) == said
    assert score_of(verdicts) == pytest.approx(score, nan_ok=True)


def test_examining_measures_the_changed_area_and_remembers_it(folder: Path, tmp_path: Path) -> None:
    """The square is a quarter of the picture, and all of it changes colour."""
    first = open_catalogue(folder)
    assert all(math.isnan(value) for value in first.measures["changed_fraction"])
    first.examine(tmp_path)
    assert first.measures["changed_fraction"].tolist() == [0.25] * 6

    class Unread(Catalogue):
        def pair(self, index: int) -> None:  # type: ignore[override]
            raise AssertionError("pixels were read again")

    second = open_catalogue(folder)
    second.__class__ = Unread
    second.examine(tmp_path)
    assert second.measures["changed_fraction"].tolist() == [0.25] * 6


@pytest.mark.parametrize(
    "text", ["", "[]", '{"examined": 99, "faults": {}, "changed_fraction": {}}', '{"examined": 1}']
)
def test_a_cache_that_cannot_be_used_is_made_again(folder: Path, tmp_path: Path, text: str) -> None:
    open_catalogue(folder).examine(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    catalogue = open_catalogue(folder)
    catalogue.examine(tmp_path)
    assert catalogue.measures["changed_fraction"].tolist() == [0.25] * 6
    assert json.loads(file.read_text())["examined"] == 6


def test_a_broken_row_is_an_entry_with_its_fault_and_the_rest_works(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(3)])
    break_picture(folder, "n1")
    catalogue = open_catalogue(folder)
    catalogue.examine(tmp_path / "cache")
    assert catalogue.ids == ["n0", "n1", "n2"]
    assert [*catalogue.faults] == [1]
    assert "row 1" in catalogue.faults[1]
    assert "no image" in catalogue.faults[1]
    with pytest.raises(DataError, match="row 1"):
        catalogue.pair(1)
    assert catalogue.pair(2).id == "n2"


def test_a_mended_row_is_looked_at_again(tmp_path: Path) -> None:
    pairs = [colour_pair(n) for n in range(3)]
    folder = write_pairs(tmp_path / "pairs", pairs)
    (file,) = folder.glob("*.parquet")
    whole = file.read_bytes()
    break_picture(folder, "n1")
    open_catalogue(folder).examine(tmp_path / "cache")
    file.write_bytes(whole)
    catalogue = open_catalogue(folder)
    catalogue.examine(tmp_path / "cache")
    assert not catalogue.faults


def test_provenance_that_is_no_json_is_a_fault(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(2)])
    (file,) = folder.glob("*.parquet")
    table = pq.read_table(file)
    records = table.to_pylist()
    records[0]["provenance"] = "{"
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), file)
    catalogue = open_catalogue(folder)
    assert "provenance is not JSON" in catalogue.faults[0]
    assert left(catalogue, Filter(words="n1")) == ["n1"]


def test_rejects_of_a_foreign_format_are_broken_rows(tmp_path: Path) -> None:
    """An image folder whose second row names a picture outside: as `read_pairs` refuses it."""
    pair = colour_pair(0)
    for name, side in (("a.png", pair.context), ("b.png", pair.confounder)):
        (tmp_path / name).write_bytes(side.data)  # type: ignore[union-attr]
    row = {"query": "Which?", "answer": "red", "licence": "CC0-1.0", "confounder_file_name": "b.png"}
    rows = [
        {**row, "id": "good", "context_file_name": "a.png"},
        {**row, "id": "bad", "context_file_name": "../x.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    catalogue = open_catalogue(tmp_path)
    assert catalogue.ids == ["good", "bad"]
    assert "bad" not in [catalogue.ids[i] for i in range(2) if i not in catalogue.faults]
    with pytest.raises(DataError):
        catalogue.pair(1)


# ---------------------------------------------------------------- filters


def test_filters(catalogue: Catalogue) -> None:
    assert left(catalogue, Filter()) == catalogue.ids
    assert left(catalogue, Filter().toggle("domain", "charts")) == ["n1", "n3", "n5"]
    assert left(catalogue, Filter().toggle("domain", "charts").toggle("domain", "charts")) == catalogue.ids
    both = Filter().toggle("domain", "charts").toggle("domain", "shapes")
    assert left(catalogue, both) == catalogue.ids
    assert left(catalogue, Filter().within("similarity", 0.1, 0.3, False)) == ["n1", "n2"]
    assert left(catalogue, Filter().within("similarity", 0.1, 0.3, True)) == ["n1", "n2", "n3"]
    assert left(catalogue, Filter().within("score", 0, 1, True)) == ["n5"]  # the others have none
    assert left(catalogue, Filter().searching("  BLUE square ")) == ["n1", "n2", "n5"]
    assert left(catalogue, Filter().searching("nothing like it")) == []
    undecided = Filter().toggle("state", "undecided")
    assert left(catalogue, undecided, n0="accepted", n3="broken") == ["n1", "n2", "n4", "n5"]
    assert left(catalogue, undecided.toggle("domain", "charts").searching("n3"), n1="skipped") == ["n3"]


def test_a_range_that_is_asked_for_twice_is_none(catalogue: Catalogue) -> None:
    once = Filter().within("similarity", 0, 0.1, False)
    assert once.within("similarity", 0, 0.1, False) == Filter()
    assert once.within("similarity", 0.1, 0.2, False).ranges == {"similarity": (0.1, 0.2, False)}


def test_every_value_lies_in_the_bar_that_finds_it(catalogue: Catalogue) -> None:
    """Clicking through all bars of a histogram finds every pair with a value exactly once."""
    found: list[str] = []
    for at in range(100):
        asked = clicked(catalogue, Filter(), "similarity", at)
        found += left(catalogue, asked) if asked != Filter() else []
    assert found == catalogue.ids


@pytest.mark.parametrize(
    ("facet", "at"), [("similarity", -1), ("similarity", 10**9), ("domain", 2), ("domain", True), ("domain", "0"),
                      ("__class__", 0), (None, 0), ("score", 0.5), (["state"], 0)]
)  # fmt: skip
def test_clicks_on_what_is_not_there_change_nothing(catalogue: Catalogue, facet: object, at: object) -> None:
    assert clicked(catalogue, Filter(), facet, at) == Filter()


def test_facets_show_counts_and_escape_names(tmp_path: Path) -> None:
    pairs = [colour_pair(0), colour_pair(1, domain="<b>&"), replace(colour_pair(2), domain="<b>&")]
    catalogue = open_catalogue(write_pairs(tmp_path / "pairs", pairs))
    html = facets_html(catalogue, np.zeros(3, dtype=np.int64), Filter().toggle("domain", "<b>&"))
    assert '<span class="name">&lt;b&gt;&amp;</span><span class="n">2</span>' in html
    assert (
        '<span class="name">shapes</span><span class="n">1</span>' in html
    )  # its own condition does not count
    assert 'aria-pressed="true"' in html
    assert "<b>" not in html


def test_filter_in_words() -> None:
    asked = Filter().toggle("domain", "charts").within("similarity", 0.1, 0.25, False).searching("red")
    assert filter_words(asked) == "Domain: charts; Similarity: 0.100 to 0.250; words: red"
    assert filter_words(Filter()) == ""


def test_measures_are_facets() -> None:
    from vlm_contextrl.app.facets import LABELS

    assert set(MEASURES) < set(LABELS)
