"""Style sheet of the report: light and dark, one column on a telephone, nothing fetched."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --page: #f6f6f3; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d8dadd; --grid: #e9eaec;
  --before: #8b95a1; --after: #0b62ae; --wrong: #b8480a; --tint: #eaf2fb; --shade: #f1f1ee; }
@media (prefers-color-scheme: dark) { :root {
  --page: #111417; --card: #1a1f24; --ink: #e8ebee; --soft: #a3adb8; --line: #343b43; --grid: #2a3037;
  --before: #8492a3; --after: #5cb0f5; --wrong: #ff9a52; --tint: #16283a; --shade: #22282e; } }

* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.2rem); line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 6px 0; }
.lead { color: var(--soft); max-width: 46em; margin: 0 0 18px; }
.prose { max-width: 46em; }
.note, .caption, .tags { color: var(--soft); font-size: .84rem; }
.card, .chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; margin: 0; min-width: 0; }
.grid { display: grid; gap: 14px; margin: 14px 0; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.charts { align-items: stretch; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.headline { align-items: stretch; }
.headline .card h3 { color: var(--soft); font-weight: 600; }
.big { font-size: clamp(1.5rem, 4vw, 2rem); font-weight: 650; line-height: 1.25; margin: 2px 0;
  font-variant-numeric: tabular-nums; }
.big .was { color: var(--soft); font-weight: 450; }
.big .now { color: var(--after); }
.gain { font-size: .92rem; font-variant-numeric: tabular-nums; }
.formula { background: var(--tint); border-radius: 8px; padding: 10px 14px; margin: 12px 0;
  line-height: 1.8; }
footer { color: var(--soft); font-size: .84rem; margin-top: 48px; }
:focus-visible { outline: 2px solid var(--after); outline-offset: 2px; }

figcaption { font-weight: 600; }
figure > svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .84rem; color: var(--soft);
  margin: 2px 0; }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend svg { flex: none; }
.defs { position: absolute; width: 0; height: 0; }
svg text { fill: var(--ink); font-size: 11.5px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .tick, svg .axis, svg .value.before { fill: var(--soft); }
svg .name, svg .value.after { font-weight: 650; }
svg .grid { stroke: var(--grid); }
svg .base { stroke: var(--soft); }
svg .zero { stroke: var(--ink); stroke-width: 1.4; }
svg .reference { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .whisker { stroke: var(--ink); stroke-width: 1.3; fill: none; }
svg .halo { stroke: var(--card); stroke-width: 3.6; fill: none; }
svg .raw { fill: none; stroke-width: 1; opacity: .35; }
svg .curve { fill: none; stroke-width: 2.4; stroke-linejoin: round; }
svg .curve.before, svg .curve.wrong { stroke-dasharray: 7 4; }
svg .raw.before, svg .curve.before { stroke: var(--before); }
svg .raw.after, svg .raw.right, svg .curve.after, svg .curve.right { stroke: var(--after); }
svg .raw.wrong, svg .curve.wrong { stroke: var(--wrong); }
svg .fill.before { fill: url(#hatch); stroke: var(--before); }
svg .fill.after, svg .fill.right { fill: var(--after); stroke: var(--after); }
svg .fill.wrong { fill: var(--wrong); stroke: var(--card); }

details summary { cursor: pointer; color: var(--soft); font-size: .84rem; margin-top: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
tbody th { font-weight: 450; }
thead th { color: var(--soft); font-weight: 600; }
.measures, .margins { width: 100%; }
.measures td, .measures thead th + th { text-align: right; padding: 6px 0 6px 12px; }
.measures small { display: block; color: var(--soft); font-size: .8rem; font-weight: 450; }
.measures small span { white-space: nowrap; }
.measures tbody th { font-weight: 600; }
.margins td, .margins thead th + th { text-align: right; padding: 4px 0 4px 10px; white-space: nowrap; }
.facts th { white-space: nowrap; }

.good { color: var(--after); }
.bad { color: var(--wrong); }
.tags { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 0 0 4px; }
.tag { border-radius: 99px; padding: 0 9px; font-weight: 600; border: 1.5px solid currentColor; }
.tag.learned, .tag.right-throughout { color: var(--after); }
.tag.still-wrong, .tag.lost { color: var(--wrong); border-style: dashed; }
.query { font-weight: 600; overflow-wrap: anywhere; }
.answer { overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; margin: 8px 0 4px; }
.side { min-width: 0; }
.side .caption { display: block; overflow-wrap: anywhere; }
pre { overflow: auto; max-height: 22em; background: var(--shade); border-radius: 8px; padding: 10px;
  font-size: .8rem; margin: 8px 0 0; }
.picture { position: relative; display: block; }
.picture img { display: block; width: 100%; height: auto; border-radius: 4px; background: #fff; }
.outline { position: absolute; border: 2px solid #000; outline: 2px dashed #fff; outline-offset: -2px;
  border-radius: 3px; }
#outlines:not(:checked) ~ * .outline { display: none; }
#outlines { accent-color: var(--after); }
label[for=outlines] { font-size: .9rem; }
.outcomes { padding-left: 1.2em; margin: 6px 0 10px; }
.ask { display: grid; gap: 6px 22px; align-items: center; max-width: 46em; margin: 14px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.ask .prompt { border-left: 3px solid var(--after); padding-left: 12px; }
.sampled { display: flex; gap: 12px; }
.sampled > div { flex: 1; min-width: 0; }
.sampled .picture { flex: 0 0 112px; }
.completions { list-style: none; margin: 6px 0 0; padding: 0; font-size: .9rem; }
.completions li { display: flex; justify-content: space-between; gap: 10px; padding: 2px 0 2px 8px;
  border-left: 3px solid currentColor; margin-top: 3px; }
.completions .bad { border-left-style: dashed; }
.completion { font-family: ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.count { color: var(--soft); font-size: .8rem; text-align: right; }
@media (max-width: 480px) { svg text { font-size: 13px; } .chart { padding: 12px 9px; } }
@media print { body { background: #fff; } .card, .chart { break-inside: avoid; } }
"""
