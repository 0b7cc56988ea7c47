"""The tabs of the dataset and of a run: each a page of `Reports` in a frame that is loaded anew when the page has changed."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from vlm_contextrl.app import cards
from vlm_contextrl.app.reports import Reports

REFRESH_S = 4
# The place in the page stays when it is loaded anew. The frame has no scripts: its policy and its sandbox forbid them.
_LOADS_AGAIN = """
const frame = element.querySelector('iframe');
let shown = '';
const show = () => {
  const {version} = props.value ?? {};
  if (!version || version === shown) return;
  const top = shown ? frame.contentWindow.scrollY : 0;
  shown = version;
  frame.addEventListener('load', () => frame.contentWindow.scrollTo(0, top), {once: true});
  frame.src = `${frame.dataset.page}?${encodeURIComponent(version)}`;
};
watch('value', show);
show();
"""


def dataset_tab(tab: gr.Tab, reports: Reports) -> None:
    """Counts, balance, provenance and licences; before them the rows that are broken."""

    def now() -> tuple[str, dict[str, str]]:
        return _broken(reports) + cards.status(reports.dataset_words(), failed=False), {
            "version": reports.dataset_version()
        }

    _framed(tab, "dataset", "The dataset", now, lambda: reports.dataset_version() == "measuring")


def run_tab(tab: gr.Tab, reports: Reports) -> None:
    """Curves, samples and probe of the run, refreshed while it trains."""
    if reports.run is None:
        gr.HTML(
            '<div class="no-model"><h2>No run was named</h2><p>Start the app with the directory of one, also while it trains:</p>'
            '<pre tabindex="0" role="region" aria-label="Command">vlm-contextrl app --pairs DIR --run runs/NAME</pre></div>',
            elem_id="no-run",
            apply_default_css=False,
        )
        return

    def now() -> tuple[str, dict[str, str]]:
        return cards.status(reports.run_words(), failed=False), {"version": reports.run_version()}

    _framed(tab, "run", "The run", now, lambda: True)


def _framed(
    tab: gr.Tab,
    name: str,
    title: str,
    now: Callable[[], tuple[str, dict[str, str]]],
    goes_on: Callable[[], bool],
) -> None:
    words = gr.HTML(elem_id=f"{name}-words", apply_default_css=False)
    frame = gr.HTML(
        html_template=(
            f'<p><a href="/pages/{name}" target="_blank" rel="noopener">Open the page by itself</a></p>'
            f'<iframe class="page-frame" title="{title}" data-page="/pages/{name}" sandbox="allow-same-origin"></iframe>'
        ),
        js_on_load=_LOADS_AGAIN,
        elem_id=f"{name}-frame",
        apply_default_css=False,
    )
    timer = gr.Timer(REFRESH_S, active=False)

    def refreshed() -> tuple[Any, ...]:
        return *now(), gr.Timer(active=goes_on())

    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    tab.select(refreshed, None, [words, frame, timer], **options)
    timer.tick(refreshed, None, [words, frame, timer], **options)


def _broken(reports: Reports) -> str:
    catalogue = reports.catalogue
    seen = (
        ""
        if catalogue.examined >= len(catalogue)
        else f" so far ({catalogue.examined:,} of {len(catalogue):,} rows were looked at)"
    )
    faults = dict(sorted(catalogue.faults.items()))
    if not faults:
        return f"<p>No row is broken{seen}.</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(catalogue.ids[index])}</th><td>{escape(fault)}</td></tr>'
        for index, fault in faults.items()
    )
    return f'<details class="faults" open><summary>{len(faults)} broken rows{seen}</summary><table><tbody>{rows}</tbody></table></details>'
