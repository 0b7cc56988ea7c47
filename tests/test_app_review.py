"""The review without its page, the reviewed set as a dataset, and the settings of the app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.app_data import break_picture, colour_pair, write_pairs
from vlm_contextrl.app import cards
from vlm_contextrl.app.catalogue import open_catalogue
from vlm_contextrl.app.decisions import DecisionLog
from vlm_contextrl.app.export import export_reviewed
from vlm_contextrl.app.review import Review, Session, following
from vlm_contextrl.app.settings import AppSettings, find_password, is_loopback
from vlm_contextrl.errors import InputError
from vlm_contextrl.storage import read_manifest, read_pairs, verify_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", [colour_pair(n) for n in range(6)])


@pytest.fixture
def review(folder: Path) -> Review:
    return opened(folder)


def opened(folder: Path) -> Review:
    catalogue = open_catalogue(folder)
    return Review(catalogue, DecisionLog(folder.parent / "decisions", folder, catalogue.content_hash))


def at(review: Review, session: Session) -> str:
    return "" if session.at is None else review.catalogue.ids[session.at]


def decide(review: Review, session: Session, verdict: str, reason: str = "", annotator: str = "ada") -> str:
    """Decide on what is shown; what is shown then."""
    assert session.at is not None
    review.decide(session, review.catalogue.keys[session.at], annotator, verdict, reason)
    return at(review, session)


def test_following() -> None:
    """After 4 comes 7, before 4 comes 2, around the ends; an index that is not in the queue has neighbours, too."""
    queue = [2, 4, 7]
    assert [following(queue, i) for i in (None, 1, 2, 4, 5, 7, 9)] == [2, 2, 4, 7, 7, 2, 2]
    assert [following(queue, i, -1) for i in (1, 2, 3, 4, 7, 9)] == [7, 7, 2, 2, 4, 7]
    assert following([], 3) is None


def test_a_review_goes_on_by_itself(review: Review) -> None:
    session = Session()
    review.open(session)
    assert at(review, session) == "n0"
    assert decide(review, session, "accept") == "n1"
    assert session.message == "n0 accepted"
    assert decide(review, session, "reject", "unclear") == "n2"
    review.step(session, 1)
    assert at(review, session) == "n3"
    assert decide(review, session, "skip") == "n4"
    assert decide(review, session, "accept") == "n5"
    assert decide(review, session, "accept") == "n2"  # around the end, to what was left out
    assert decide(review, session, "accept") == ""
    review.undo(session, "ada")
    assert at(review, session) == "n2"
    assert [review.log.state(f"n{n}") for n in range(6)] == [
        "accepted", "rejected", "undecided", "skipped", "accepted", "accepted",
    ]  # fmt: skip


def test_a_link_opens_a_pair_outside_the_queue(review: Review) -> None:
    session = Session()
    review.open(session, "n3")
    assert at(review, session) == "n3"
    decide(review, session, "accept")
    review.open(session, "n3")
    assert at(review, session) == "n3"
    review.open(session, "../../etc/passwd")
    assert session.failed
    assert "no pair '../../etc/passwd'" in session.message
    assert at(review, session) == "n4"[:1] + "0"  # the first one that is undecided


def test_fingers_that_are_faster_than_the_page_decide_nothing(review: Review) -> None:
    session = Session()
    review.open(session)
    first = review.catalogue.keys[0]
    review.decide(session, first, "ada", "accept")
    review.decide(session, first, "ada", "accept")
    assert session.failed
    assert review.log.state("n1") == "undecided"
    assert at(review, session) == "n1"


@pytest.mark.parametrize(("annotator", "verdict"), [("", "accept"), ("ada", "reject"), ("ada", "destroy")])
def test_what_is_refused_is_said_and_changes_nothing(review: Review, annotator: str, verdict: str) -> None:
    session = Session()
    review.open(session)
    assert decide(review, session, verdict, annotator=annotator) == "n0"
    assert session.failed
    assert review.log.state("n0") == "undecided"


def test_undo_is_of_this_window_and_this_annotator(review: Review) -> None:
    one, other = Session(), Session()
    review.open(one)
    review.open(other)
    decide(review, one, "accept")
    review.undo(other, "ada")
    assert "nothing to undo" in other.message
    review.undo(one, "bob")
    assert "not made as bob" in one.message
    assert review.log.state("n0") == "accepted"
    review.undo(one, "ada")
    assert review.log.state("n0") == "undecided"


def test_filters_move_to_what_they_leave(review: Review) -> None:
    session = Session()
    review.open(session)
    domain = review.catalogue.names["domain"].index("charts")
    review.click(session, "domain", domain)
    assert at(review, session) == "n1"
    assert decide(review, session, "accept") == "n3"
    review.search(session, "n5")
    assert at(review, session) == "n5"
    review.search(session, "nothing")
    assert at(review, session) == ""
    review.clear(session)
    assert at(review, session) == "n0"
    assert len(review.queue(session)) == 6


def test_bulk_decides_on_what_was_shown_when_it_was_asked_for(review: Review) -> None:
    session, other = Session(), Session()
    review.open(session)
    review.ask_bulk(session, "reject")
    assert session.bulk is None
    assert "needs a reason" in session.message
    review.click(session, "domain", review.catalogue.names["domain"].index("charts"))
    review.ask_bulk(session, "reject", "too easy")
    assert session.bulk is not None
    assert session.bulk.ids == ("n1", "n3", "n5")
    assert "Domain: charts" in session.bulk.words
    assert not review.log.file.exists()  # not before it is confirmed
    review.open(other)
    decide(review, other, "accept", annotator="bob")
    review.confirm_bulk(session, "ada")
    assert session.message == "3 pairs rejected"
    assert [review.log.state(f"n{n}") for n in range(6)] == ["accepted", "rejected", "undecided"] * 1 + [
        "rejected", "undecided", "rejected",
    ]  # fmt: skip
    review.undo(session, "ada")
    assert [review.log.state(f"n{n}") for n in range(6)] == ["accepted"] + ["undecided"] * 5


def test_a_narrower_filter_forgets_the_bulk(review: Review) -> None:
    session = Session()
    review.open(session)
    review.ask_bulk(session, "accept")
    review.search(session, "n1")
    review.confirm_bulk(session, "ada")
    assert "nothing to confirm" in session.message
    assert not review.log.file.exists()


def test_two_reviewers_see_each_other(folder: Path) -> None:
    """Two servers over one folder: what one decides leaves the other's queue."""
    one, other = opened(folder), opened(folder)
    first, second = Session(), Session()
    one.open(first)
    other.open(second)
    decide(one, first, "accept")
    assert decide(other, second, "reject", "unclear", annotator="bob") == "n1"
    assert one.log.state("n0") == "accepted"
    one.states()
    assert one.log.state("n0") == "disputed"
    decide(other, second, "accept", annotator="bob")
    one.step(first, 1)
    assert at(one, first) == "n2"


def test_a_broken_row_is_shown_and_not_decided_on(folder: Path) -> None:
    break_picture(folder, "n1")
    review, session = opened(folder), Session()
    review.catalogue.examine()
    review.open(session, "n1")
    assert decide(review, session, "accept") == "n1"
    assert "broken row" in session.message
    review.ask_bulk(session, "accept")
    assert session.bulk is not None
    assert session.bulk.ids == ("n0", "n2", "n3", "n4", "n5")


# ---------------------------------------------------------------- export


def test_export(folder: Path) -> None:
    break_picture(folder, "n5")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    review = opened(folder)
    with pytest.raises(InputError, match="no pair is accepted"):
        export_reviewed(review.catalogue, review.log)
    log = review.log
    log.decide("ada", ["n0", "n1", "n2", "n5"], "accept")
    log.decide("bob", ["n1"], "reject", "unclear")
    log.decide("ada", ["n3"], "reject", "wrong answer")
    out, manifest = export_reviewed(review.catalogue, log)
    assert out == folder.parent / "decisions" / "reviewed-1"
    assert (manifest.rows, manifest.rejects) == (2, 4)
    assert verify_folder(out) == manifest
    pairs = read_pairs(out)
    assert [pair.id for pair in pairs] == ["n0", "n2"]
    human = pairs[0].verdicts["human"]
    assert (human["annotator"], human["decision"], human["reason"]) == ("ada", "accept", "")
    assert pairs[0].context == colour_pair(0).context
    rejects = {
        row["id"]: row["reason"] for row in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    }
    assert rejects.pop("n5").startswith("broken: ")
    assert rejects == {
        "n1": "disputed: ada: accept; bob: reject (unclear)",
        "n3": "rejected: ada: reject (wrong answer)",
        "n4": "undecided: nobody decided on it",
    }
    assert manifest.config["input_content_hash"] == read_manifest(folder).content_hash
    assert export_reviewed(review.catalogue, log)[0].name == "reviewed-2"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# ---------------------------------------------------------------- text as text


def test_text_of_datasets_and_visitors_is_escaped(folder: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    pair = colour_pair(
        0, id=evil, query=evil, answer=evil, confounder_answer="b" + evil, domain=evil, recipe=evil,
        provenance={"licence": evil, evil: evil}, verdicts={"verifier": {evil: evil}},
    )  # fmt: skip
    log = opened(folder).log
    log.decide(evil[:60], ["n0"], "reject", evil)
    shown = [
        cards.question_card(pair),
        cards.details(pair, log.standing("n0")),
        cards.broken_card(evil, evil),
        cards.status(evil, True),
        cards.texts(colour_pair(0, context=evil, confounder=evil)),
    ]
    for html in shown:
        assert "<script" not in html
        assert "<img" not in html
        assert "&lt;" in html
    assert 'href="?pair=%3Cscript%3E' in shown[0]
    session = Session()
    review = opened(folder)
    review.open(session)
    review.search(session, evil)
    review.clear(session)
    review.search(session, "n0")
    review.clear(session)
    review.ask_bulk(session, "reject", evil)
    assert session.bulk is not None
    assert "<script" not in cards.bulk_words(session.bulk)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


def test_another_address_needs_a_password(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--host 0.0.0.0: other machines could reach the app, expected a password"
    ):
        AppSettings(pairs=tmp_path, host="0.0.0.0")
    with pytest.raises(InputError, match="7 characters, expected at least 8"):
        AppSettings(pairs=tmp_path, host="0.0.0.0", password="1234567")
    settings = AppSettings(pairs=tmp_path, host="0.0.0.0", password="12345678")
    assert "12345678" not in repr(settings)


def test_settings_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--adapter without --model"):
        AppSettings(pairs=tmp_path, adapters=(tmp_path,))
    with pytest.raises(InputError, match="no adapter_config.json"):
        AppSettings(pairs=tmp_path, model="tinyvl", adapters=(tmp_path,))
    with pytest.raises(InputError, match="expected a run directory"):
        AppSettings(pairs=tmp_path, run=tmp_path / "missing")
    assert AppSettings(pairs=tmp_path / "pairs").decisions_folder == tmp_path.resolve() / "pairs-decisions"


def test_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_CONTEXTRL_PASSWORD", "from the environment")
    assert find_password(None) == "from the environment"
    (tmp_path / "password").write_text("from a file\n")
    assert find_password(tmp_path / "password") == "from a file"
    (tmp_path / "empty").write_text("\n")
    for name, said in (("empty", "is empty"), ("missing", "cannot be read")):
        with pytest.raises(InputError, match=said):
            find_password(tmp_path / name)
