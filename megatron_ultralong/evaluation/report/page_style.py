"""The report's style sheet: one column on a phone, several beside each other where there is room, light and dark."""

from megatron_ultralong.evaluation.report.scale import COLORS, ON_DARK


def _variables(colors: tuple[str, ...]) -> str:
    return "".join(f" --m{index}: {color};" for index, color in enumerate(colors))


STYLE = (
    f":root {{{_variables(COLORS)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{{_variables(ON_DARK)} }} }}"
    """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5c6875; --line: #e1e5ea; --page: #fff; --soft: #f6f7f9;
  --link: #0b6e69; --mark: #ffe08a; --better: #0b6e69; --worse: #b5432a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --muted: #a0abb8; --line: #333b45; --page: #14181d; --soft: #1c2128; --link: #5cc7bd;
    --mark: #7a5c00; --better: #5cc7bd; --worse: #f08a6c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 72rem; padding: 2.2rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: clamp(1.55rem, 5vw, 2.2rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; } h4 { font-size: .9rem; margin: .9rem 0 .25rem; }
section { margin-top: 3.2rem; scroll-margin-top: 3.4rem; }
p { margin: .3rem 0 1rem; max-width: 48rem; color: var(--muted); }
small { font-size: .82em; color: var(--muted); font-weight: 400; }
nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.1rem; overflow-x: auto; padding: .6rem 1rem;
  margin: 1.4rem -1rem 0; background: var(--page); border-bottom: 1px solid var(--line); scrollbar-width: none; }
nav a { white-space: nowrap; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(12.5rem, 100%), 1fr)); gap: .9rem;
  margin: 1.6rem 0; }
.card { border: 1px solid var(--line); border-radius: .7rem; padding: .9rem 1.1rem 1rem; background: var(--soft); }
.card h3 { margin: 0 0 .5rem; color: var(--muted); font-size: .88rem; font-weight: 500; }
.card div { display: grid; grid-template-columns: minmax(0, 1fr) auto; align-items: baseline; gap: .15rem .6rem;
  margin-top: .35rem; } .card .model { white-space: normal; overflow-wrap: anywhere; }
.card b { font-size: 1.3rem; font-variant-numeric: tabular-nums; font-weight: 650; }
.card small { grid-column: 1 / -1; height: 5px; border-radius: 3px; background: var(--line); overflow: hidden; }
.card small i { display: block; height: 100%; border-radius: 3px; }
.notes { border-left: 3px solid #d9a514; background: var(--soft); border-radius: 0 .5rem .5rem 0; padding: .7rem 1.1rem;
  margin: 1.4rem 0; } .notes ul { margin: 0; padding-left: 1.1rem; } .notes li { margin: .25rem 0; }
.model { white-space: nowrap; } .model i, .key i { display: inline-block; border-radius: 3px; }
.model i { width: .72em; height: .72em; margin-right: .42em; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .2rem 0 .6rem; }
.key { font-size: .88rem; margin: 0 0 .5rem; } .key i { width: 8rem; height: .7em; margin: 0 .3em; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.2rem 2rem;
  align-items: start; } .side.two { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.side.wide { grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); }
figure { margin: .5rem 0; min-width: 0; max-width: 34rem; } .wide figure { max-width: none; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .35rem; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--muted); }
svg text.in { font-size: 10px; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .mark, svg .edge { stroke: var(--ink); stroke-width: 1.3; stroke-dasharray: 4 3; }
svg .under { stroke: var(--page); stroke-width: 3.5; } svg .edge { stroke-width: 1.8; }
svg .line { fill: none; stroke-width: 2; } svg rect { stroke: var(--page); stroke-width: .6; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--page); text-align: left; padding-left: 0; z-index: 1; }
th { font-weight: 500; } thead th { color: var(--muted); font-size: .82rem; }
.scores td { min-width: 2.55rem; padding: .32rem .2rem; text-align: center; }
.scores td.heat { border: 1px solid var(--page); }
.scores thead th:not(:first-child) { text-align: center; padding: .32rem .3rem; }
.nowrap { white-space: nowrap; } .scores td.words { padding: .32rem .6rem; }
tr:has(.published) { font-size: .95em; } td.none, td.published, .published { color: var(--muted); }
td.published { font-style: italic; }
td.better { color: var(--better); } td.worse { color: var(--worse); } td.sure { font-weight: 700; }
td.unsure { color: var(--muted); }
.list thead { display: none; } .list td, .prose td { text-align: left; white-space: normal; }
.list th { white-space: normal; vertical-align: top; padding-right: 1rem; min-width: 7rem; }
.prose td:last-child { min-width: 16rem; }
code { font-size: .88em; overflow-wrap: anywhere; } .muted { color: var(--muted); font-style: italic; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
details.task { border-top: 1px solid var(--line); } details.task > summary { font-weight: 600; padding: .6rem 0; }
details.sample { margin: 0 0 .3rem .2rem; } details.sample > summary { color: var(--ink); }
details.sample[open] { border-left: 3px solid var(--line); padding-left: .9rem; }
.chip { display: inline-block; border-radius: 1em; padding: .02rem .6rem; font-size: .8rem; margin: .1rem 0; }
pre { margin: 0; padding: .7rem .9rem; background: var(--soft); border: 1px solid var(--line); border-radius: .5rem;
  font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
mark { background: var(--mark); color: inherit; border-radius: .2rem; padding: .05rem .1rem; }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media print { nav { display: none; } details { break-inside: avoid; } }
"""
)
