"""What models said of a pair, as HTML: a column per arm, so that arms are compared row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from vlm_contextrl.app.chooser import ORDERS, Choice, sigmoid
from vlm_contextrl.report.chart_parts import number

NO_MODEL = """<div class="no-model"><h2>No model is loaded</h2><p>Start the app with one to see it choose:</p>
<pre tabindex="0" role="region" aria-label="Commands">vlm-contextrl app --pairs DIR --model tinyvl
vlm-contextrl app --pairs DIR --model MODEL --adapter ADAPTER</pre>
<p><code>tinyvl</code> is the embedded model. <code>--adapter</code> takes a folder that training wrote (an adapter or a whole model)
and may be repeated: each is shown beside the plain model.</p></div>"""
WAITING = "\N{HORIZONTAL ELLIPSIS}"


def choices_table(said: Sequence[Choice]) -> str:
    """All that is known so far."""
    rows: list[tuple[str, Callable[[Choice], str]]] = [
        ("Answer on C+", lambda choice: _answer(choice, 0)),
        ("Answer on C\N{MINUS SIGN}", lambda choice: _answer(choice, 1)),
        *(
            (f"Order {at + 1}: {words}", lambda choice, at=at: _order(choice, at))
            for at, words in enumerate(ORDERS)
        ),
        ("Mean margin, logits", _mean_margin),
        ("Position bias", _bias),
        ("Verdict", _verdict),
    ]
    head = "".join(f'<th scope="col">{escape(choice.arm)}</th>' for choice in said)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell(choice)}</td>" for choice in said)}</tr>'
        for name, cell in rows
    )
    return (
        f'<div class="choices"><table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
        '<p class="note">A margin is the logit of the letter of C+ minus the other letter\'s; above zero the right context is chosen. '
        "The probability is of that letter among A and B. Position bias is the mean of P(A) \N{MINUS SIGN} 0.5 over both orders.</p></div>"
    )


def progress_line(done: int, total: int, words: str) -> str:
    """How far the asking is."""
    return f'<p class="asking"><progress max="{total}" value="{done}" aria-label="asked"></progress> {escape(words)}</p>'


def _answer(choice: Choice, side: int) -> str:
    if len(choice.answers) <= side:
        return WAITING
    text, right = choice.answers[side]
    mark = {True: '<span class="good">right</span>', False: '<span class="bad">wrong</span>', None: ""}[right]
    return f"<code>{escape(text) or '(nothing)'}</code> {mark}"


def _order(choice: Choice, at: int) -> str:
    if len(choice.logits) <= at:
        return WAITING
    (a, b), margin = choice.logits[at], choice.margins[at]
    share = sigmoid(margin)
    word = "tie" if margin == 0 else "right" if margin > 0 else "wrong"
    css = "good" if margin > 0 else "bad"
    return (
        f'<span class="probability" role="img" aria-label="P(C+) = {share:.3f}"><span class="{css}" style="width:{100 * share:.1f}%">'
        f'</span></span><span class="figures">P(C+) {number(share, 3)}, margin {number(margin, 3)}, '
        f'A {number(a, 3)}, B {number(b, 3)} <span class="{css}">{word}</span></span>'
    )


def _mean_margin(choice: Choice) -> str:
    if choice.bias is None:
        return WAITING
    return number(sum(choice.margins) / len(ORDERS), 3)


def _bias(choice: Choice) -> str:
    bias = choice.bias
    if bias is None:
        return WAITING
    towards = f" towards {'A' if bias > 0 else 'B'}" if abs(bias) >= 0.0005 else ""
    return f"{number(bias, 3)}{towards}"


def _verdict(choice: Choice) -> str:
    if choice.bias is None:
        return WAITING
    right = sum(margin > 0 for margin in choice.margins)
    words = {
        2: "chooses C+ in both orders",
        1: "follows the position",
        0: "chooses C\N{MINUS SIGN} in both orders",
    }
    return f'<span class="{"good" if right == 2 else "bad"}">{words[right]}</span>'
