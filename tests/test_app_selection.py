"""How models choose in the app: figures by hand and against the probe, and the page in a real browser."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.app_browser import serving, watched_page
from tests.app_data import colour_pair, square, write_pairs
from vlm_contextrl.app.choice_html import choices_table
from vlm_contextrl.app.chooser import Choice, Chooser, questions, sigmoid
from vlm_contextrl.errors import ContextRLError

if TYPE_CHECKING:
    from playwright.sync_api import Page

WAIT_MS = 60_000


def test_figures_by_hand() -> None:
    """Order 1: C+ is A, margin 2 - 1 = 1. Order 2: C+ is B, margin 0 - 3 = -3. P(A) is sigmoid(1) = 0.731 and sigmoid(3) = 0.953."""
    choice = Choice("base", [("red", True), ("red", False)], [(2.0, 1.0), (3.0, 0.0)])
    assert choice.margins == [1.0, -3.0]
    assert choice.bias == pytest.approx((0.7310586 + 0.9525741) / 2 - 0.5, abs=1e-6)
    html = choices_table([choice])
    assert "P(C+) 0.731, margin 1.000, A 2.000, B 1.000" in html
    assert "P(C+) 0.047, margin \N{MINUS SIGN}3.000, A 3.000, B 0.000" in html
    assert "<td>\N{MINUS SIGN}1.000</td>" in html  # the mean margin
    assert "0.342 towards A" in html
    assert "follows the position" in html


@pytest.mark.parametrize(
    ("logits", "words"),
    [([(1.0, 0.0), (0.0, 1.0)], "chooses C+ in both orders"), ([(0.0, 1.0), (1.0, 0.0)], "chooses C\N{MINUS SIGN} in both orders"),
     ([(1.0, 0.0), (1.0, 0.0)], "follows the position")],
)  # fmt: skip
def test_verdicts(logits: list[tuple[float, float]], words: str) -> None:
    assert words in choices_table([Choice("base", logits=logits)])


def test_what_is_not_known_yet_waits() -> None:
    choice = Choice("base", [("red", True)], [(1.0, 0.0)])
    assert choice.bias is None
    assert choices_table([choice]).count("<td>\N{HORIZONTAL ELLIPSIS}</td>") == 5


def test_sigmoid_never_overflows() -> None:
    assert [sigmoid(x) for x in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
    assert sigmoid(-1.0) == pytest.approx(1 / (1 + math.e))


def test_model_text_is_escaped() -> None:
    html = choices_table([Choice("<b>arm", [("<script>alert(1)</script>", None)])])
    assert "<script" not in html
    assert "<b>" not in html


def test_questions_of_both_sides() -> None:
    on_context, on_confounder = questions(colour_pair(0))
    assert (on_context.answer, on_confounder.answer) == ("red", "green")
    assert on_confounder.images == (colour_pair(0).confounder,)
    text = colour_pair(0, context="it is red", confounder="it is green", confounder_answer=None)
    assert [row.context_text for row in questions(text)] == ["it is red", "it is green"]
    assert questions(text)[1].answer == "red"


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    chooser = Chooser(str(tmp_path / "missing"))
    for _ in range(2):
        with pytest.raises(ContextRLError, match="no such model folder"):
            next(chooser.choose(colour_pair(0)))


# ---------------------------------------------------------------- with TinyVL


def write_adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of TinyVL whose B matrices are not zero, so that it changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from vlm_contextrl.models import lora_targets, resolve

    model = AutoModelForImageTextToText.from_pretrained(resolve("tinyvl"))
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, target_modules=lora_targets(False), task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3, generator=generator)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(folder / f"adapter{n}", n) for n in (1, 2)]


@pytest.mark.slow
def test_every_arm_says_what_it_says_alone(adapters: list[Path]) -> None:
    """Margins of the plain model and of two adapters on shared weights equal those of the probe on each of them loaded by itself."""
    from vlm_contextrl.config import ModelSettings
    from vlm_contextrl.models import load_policy
    from vlm_contextrl.probe import pair_margins

    pair = colour_pair(0)
    *_, said = Chooser("tinyvl", adapters).choose(pair)
    assert [choice.arm for choice in said] == ["tinyvl", *(f"{a.parent.name}/{a.name}" for a in adapters)]
    alone = []
    for adapter in (None, *map(str, adapters)):
        policy = load_policy(ModelSettings(path="tinyvl", adapter=adapter), trainable=False)
        alone.append(pair_margins(policy, [pair])[0]["margins"])
    for choice, margins in zip(said, alone, strict=True):
        assert choice.margins == pytest.approx(margins, abs=1e-4)
    assert len({round(margins[0], 3) for margins in alone}) == 3  # the arms do differ


@pytest.mark.slow
def test_a_whole_model_can_be_compared(tmp_path: Path) -> None:
    import shutil

    from vlm_contextrl.models import resolve

    shutil.copytree(resolve("tinyvl"), tmp_path / "copy")
    *_, said = Chooser("tinyvl", [tmp_path / "copy"]).choose(colour_pair(1))
    assert said[0].logits == said[1].logits
    assert said[0].answers == said[1].answers


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, adapters: list[Path]) -> Iterator[str]:
    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    folder = write_pairs(tmp_path_factory.mktemp("selection") / "pairs", [colour_pair(n) for n in range(3)])
    room = open_room(AppSettings(pairs=folder, model="tinyvl", adapters=(adapters[0],)))
    with serving(application(room)) as opened:
        yield opened
    room.close()


def open_tab(page: Page, address: str, name: str = "n0", has_model: bool = True) -> None:
    """The tab on a pair, whose name it takes over."""
    from playwright.sync_api import expect

    page.goto(f"{address}?pair={name}")
    expect(page.locator("#card .tags a")).to_be_visible()
    page.get_by_role("tab", name="Selection").click()
    if has_model:
        expect(page.locator("#selection-pair input, #selection-pair textarea")).to_have_value(name)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side_px: int) -> bytes:
    """A PNG of a few kilobytes that says it has side_px * side_px pixels."""
    whole = png(Image.new("1", (8, 8)))
    head = whole[12:16] + side_px.to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:]


@pytest.mark.slow
def test_a_model_and_an_adapter_choose_in_both_orders(address: str, page: Page) -> None:
    from playwright.sync_api import expect

    open_tab(page, address, "n1")
    page.locator("#ask").click()
    expect(page.locator("#ask-status")).to_contain_text("asked in both orders", timeout=WAIT_MS)
    table = page.locator("#ask-result table")
    expect(table.locator("thead th")).to_have_count(2)
    for row in ("Answer on C+", "Order 1: C+ as A", "Order 2", "Mean margin", "Position bias", "Verdict"):
        assert table.get_by_role("row").filter(has_text=row).locator("td").count() == 2
    assert "\N{HORIZONTAL ELLIPSIS}" not in table.inner_text()
    chooser = Chooser("tinyvl")
    *_, (base,) = chooser.choose(colour_pair(1))
    expect(table).to_contain_text(f"A {base.logits[0][0]:.3f}".replace("-", "\N{MINUS SIGN}"))


@pytest.mark.slow
def test_own_question_with_two_uploads(address: str, page: Page) -> None:
    from playwright.sync_api import expect

    open_tab(page, address)
    page.locator("#own").get_by_role("button").first.click()
    for name, text in (("query", "Which colour has the square?"), ("answer", "red"), ("other", "blue")):
        page.locator(f"#own-{name} input, #own-{name} textarea").fill(text)
    for name, colour in (("context", "red"), ("confounder", "blue")):
        upload(page, name, f"{colour}.png", png(square(colour, 56)))
    page.locator("#ask-own").click()
    expect(page.locator("#ask-status")).to_contain_text("asked in both orders", timeout=WAIT_MS)
    shown = page.locator(".pair-viewer img:visible").first
    expect(shown).to_have_attribute("alt", "Your picture C+")
    assert "/image/upload-" in str(shown.get_attribute("src"))


def upload(page: Page, side: str, name: str, data: bytes) -> None:
    from playwright.sync_api import expect

    page.locator(f"#own-{side} input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": data}
    )
    expect(page.locator(f"#own-{side}")).to_contain_text(name.rpartition(".")[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("bomb.png", bomb(60_000), "expected at most 50000000 pixels"),
        ("page.png", b"<html><script>alert(1)</script></html>", "are no image"),
        (
            "vector.png",
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/"/></svg>',
            "are no image",
        ),
        ("torn.png", png(square("red"))[:-30], "damaged or truncated"),
    ],
)
def test_uploads_that_are_no_pictures_are_refused(
    address: str, page: Page, name: str, data: bytes, said: str
) -> None:
    from playwright.sync_api import expect

    open_tab(page, address)
    page.locator("#own").get_by_role("button").first.click()
    upload(page, "context", name, data)
    upload(page, "confounder", "fine.png", png(square("blue")))
    page.locator("#own-query input, #own-query textarea").fill("Which?")
    page.locator("#own-answer input, #own-answer textarea").fill("red")
    page.locator("#ask-own").click()
    expect(page.locator("#ask-status .failed")).to_contain_text(said)
    assert page.locator("#ask-result table").count() == 0


@pytest.mark.slow
def test_asking_can_be_cancelled(address: str, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order takes a second and a half here: cancelled after the first one, the last one never comes."""
    import time

    from playwright.sync_api import expect

    from vlm_contextrl.app import chooser

    quick = chooser._option_logits

    def slow(*arguments: Any) -> tuple[float, float]:
        time.sleep(1.5)
        return quick(*arguments)

    monkeypatch.setattr(chooser, "_option_logits", slow)
    with watched_page(browser) as page:
        open_tab(page, address)
        page.locator("#ask").click()
        expect(page.locator("#ask-status")).to_contain_text(re.compile(r"[2-7] of 8"), timeout=WAIT_MS)
        page.locator("#ask-cancel").click()
        expect(page.locator("#ask-status")).to_contain_text("cancelled")
        page.wait_for_timeout(4000)
        expect(page.locator("#ask-status")).to_contain_text("cancelled")
        assert "\N{HORIZONTAL ELLIPSIS}" in page.locator("#ask-result").inner_text()


@pytest.mark.slow
def test_without_a_model_the_tab_says_how_to_load_one(tmp_path: Path, browser: Any) -> None:
    from playwright.sync_api import expect

    from vlm_contextrl.app.server import application, open_room
    from vlm_contextrl.app.settings import AppSettings

    room = open_room(AppSettings(pairs=write_pairs(tmp_path / "pairs", [colour_pair(0)])))
    with serving(application(room)) as address, watched_page(browser) as page:
        open_tab(page, address, has_model=False)
        expect(page.locator("#no-model")).to_contain_text("--model tinyvl")
        page.goto("about:blank")
    room.close()
