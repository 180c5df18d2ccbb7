"""The style sheet of the HTML report."""

STYLE_SHEET = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2330;
  --soft: #667085; --line: #e4e6ea; --accent: #2f6fe4; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1b1f26; --ink: #e7eaf0;
  --soft: #98a1b0; --line: #2b313b; --accent: #6c9cf5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header { border-bottom: 3px solid var(--accent); margin-bottom: 24px; padding-bottom: 14px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 10px; letter-spacing: -0.005em; }
p { max-width: 74ch; margin: 8px 0 14px; }
.subtitle { color: var(--soft); margin: 0; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(156px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.value { font-size: 22px; font-weight: 650; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.label { color: var(--soft); font-size: 13px; }
figure { margin: 16px 0 22px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 14px 16px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text:not([style*="fill: #ffffff"]) { fill: var(--soft) !important; }
figure svg text {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 10px; max-width: 100ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; }
@media print { main { max-width: none; padding: 0; } figure, .tile { break-inside: avoid; } }
"""
