"""The page around a training's report."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { --ink: #1e293b; --soft: #64748b; --line: #e2e0da; --paper: #faf9f6; --card: #ffffff; --code: #f1efe9;
  --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #9333ea; --c4: #dc2626; --c5: #0891b2; --c6: #78716c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --soft: #94a3b8; --line: #334155; --paper: #0f172a; --card: #1e293b; --code: #0f172a;
    --c0: #60a5fa; --c1: #fbbf24; --c2: #34d399; --c3: #c084fc; --c4: #f87171; --c5: #22d3ee; --c6: #a8a29e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 28px 80px; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 2px 0 4px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 44px 0 12px; font-size: 20px; }
h3 { margin: 14px 0 6px; font-size: 14px; color: var(--soft); font-weight: 600; }
.note { margin: -6px 0 14px; color: var(--soft); font-size: 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 24px; }
.tiles div { flex: 1 1 130px; padding: 12px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; color: var(--soft); font-size: 13px; }
.tiles b { display: block; color: var(--ink); font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.blocks { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px; }
.blocks > p, .blocks > pre, .blocks > details, .blocks > table, .strip { grid-column: 1 / -1; }
.blocks > p { margin: 0 0 -10px; }
figure { margin: 0; }
.blocks > figure { padding: 14px 16px 12px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 8px; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--line); fill: none; }
.tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.label { fill: var(--soft); font-size: 12px; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.raw { fill: none; stroke: currentColor; stroke-width: 1; opacity: .25; }
circle { fill: currentColor; }
.floor { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 2 4; fill: none; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .real { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 8px; font-size: 13px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin: 0 6px 3px 0;
  border-radius: 2px; background: var(--key); }
.key.c0 { --key: var(--c0); } .key.c1 { --key: var(--c1); } .key.c2 { --key: var(--c2); }
.key.c3 { --key: var(--c3); } .key.c4 { --key: var(--c4); } .key.c5 { --key: var(--c5); }
.key.c6 { --key: var(--c6); } .key.real { --key: var(--soft); }
.legend .key { color: var(--soft); }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
figure.grid { display: flex; gap: 12px; }
figure.grid > div { flex: 1; min-width: 0; }
.rows { display: flex; flex-direction: column; margin: 29px 0 0; padding: 0; list-style: none; max-width: 34%;
  font-size: 13px; color: var(--soft); text-align: right; }
.rows li { flex: 1; min-height: 0; display: flex; align-items: center; justify-content: flex-end; line-height: 1.15;
  overflow: hidden; overflow-wrap: anywhere; }
.strip > div { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; }
.strip img { image-rendering: auto; }
.strip figcaption { margin: 4px 0 0; font-weight: 400; color: var(--soft); font-size: 13px; }
pre { margin: 0; padding: 10px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--code); border: 1px solid var(--line);
  border-radius: 8px; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; user-select: all; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
table { border-collapse: collapse; font-size: 13px; justify-self: start; }
th { padding: 2px 22px 2px 0; color: var(--soft); font-weight: 400; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
details div { margin-left: 18px; }
summary { cursor: pointer; color: var(--soft); }
</style>
<header><p>KIND</p><h1>TITLE</h1><p>ABOUT</p></header>
CONTENT
</html>
"""
