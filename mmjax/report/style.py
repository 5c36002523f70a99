"""The style sheet of report.html: system fonts, light and dark, one column on a phone."""

CSS = """
:root { --paper: #f6f8fa; --card: #fff; --ink: #1f2328; --faint: #656d76; --line: #d8dee4; --mark: #0072b2;
  --good: #118046; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --faint: #8b949e;
  --line: #30363d; --mark: #56b4e9; --good: #3fb950; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; }
h3 { font-size: .95rem; margin: 0 0 .6rem; }
p { margin: 0 0 .5rem; } .lead { font-size: 1.05rem; color: var(--faint); max-width: 46rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 0 0 1rem; }
.tiles { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); margin-top: 1.4rem; }
.tiles .card { margin: 0; }
.value { font-size: 2.3rem; font-weight: 650; line-height: 1.15; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.what { font-size: .9rem; overflow-wrap: anywhere; } .note, .step { color: var(--faint); font-size: .85rem; }
.step { font-weight: 400; float: right; }
.bar { position: relative; height: 6px; border-radius: 3px; background: var(--line); margin: .55rem 0 .4rem; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; background: var(--mark); }
.bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.scroll { overflow-x: auto; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr));
  margin-bottom: 1rem; }
.panels .card { margin: 0; padding: .6rem; } .panels img { display: block; width: 100%; height: auto; }
.picture img { display: block; width: 100%; min-width: 600px; height: auto; border-radius: 4px; }
.picture.small img { width: auto; max-width: 100%; min-width: 0; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } th { font-weight: 600; } thead th { color: var(--faint); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th.number { text-align: right; }
td small { color: var(--faint); display: block; }
.info td { font-family: ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; font-size: .8rem;
  overflow-wrap: anywhere; }
.info th { font-weight: 400; color: var(--faint); white-space: nowrap; }
summary { cursor: pointer; font-weight: 600; }
details[open] > summary { margin-bottom: .8rem; }
@media (max-width: 600px) { main { padding: 1.25rem .8rem 3rem; } h1 { font-size: 1.5rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .7rem; } .value { font-size: 1.6rem; } .card { padding: .8rem; }
  .info th { white-space: normal; } .step { float: none; display: block; } }
"""
