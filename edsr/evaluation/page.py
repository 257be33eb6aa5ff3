"""A comparison as one web page with a slider, which needs nothing but itself: no network, no other file."""

import base64
import html
import io
import math
from string import Template

from PIL import Image

from .comparison import Comparison

LARGEST = 1600
"""Pixels a side of what a page holds; a larger result is cut to the surroundings of the detail."""


def render_page(comparison: Comparison) -> str:
    """The page, HTML in which every text is escaped; to be saved as UTF-8.

    It shows two of the images in one place, parted by a handle that mouse, touch and keyboard move, enlarged 1, 2 or
    4 times pixel by pixel; where there are three, which two can be chosen. Images are embedded as lossless WebP: of
    results of more than 1600 pixels a side the part around the detail, of which the page says so. The page forbids
    itself, by its content security policy, to load anything.
    """
    whole = next(iter(comparison.images.values()))
    left, top, width, height = _part(comparison, *whole.shape[1::-1])
    x, y, side = comparison.detail
    images = [
        f'<img alt="{html.escape(title)}" draggable="false" src="{_embedded(image[top:, left:][:height, :width])}">'
        for title, image in comparison.images.items()
    ]
    titles = list(comparison.images)
    choices = [_choice(name, titles, i) if len(titles) > 2 else "" for i, name in enumerate(("left", "right"))]
    notes = [f"{comparison.size[0]} x {comparison.size[1]} pixels, enlarged to {whole.shape[1]} x {whole.shape[0]}."]
    if (height, width) != whole.shape[:2]:
        held = f"{width} x {height} of them around the detail, from {left}, {top} on"
        notes.append(f"To be small, this page holds {held}.")
    return _PAGE.substitute(
        name=html.escape(comparison.name.encode("utf-8", "replace").decode()),  # a file's need not be valid Unicode
        notes=" ".join(notes),
        left=choices[0],
        right=choices[1],
        zoom=_choice("zoom", ["1x", "2x", "4x"], 0, ["1", "2", "4"]),
        images="".join(images),
        scores=_table(comparison),
        width=width,
        height=height,
        x=x + side / 2 - left,
        y=y + side / 2 - top,
    )


def _part(comparison: Comparison, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, width, height) of what the page holds: the detail in its middle, as far as the border lets it."""
    x, y, side = comparison.detail
    across, down = min(width, LARGEST), min(height, LARGEST)
    left = min(max(0, x + side // 2 - across // 2), width - across)
    top = min(max(0, y + side // 2 - down // 2), height - down)
    return left, top, across, down


def _embedded(image) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _choice(name: str, titles: list[str], chosen: int, values: list[str] | None = None) -> str:
    """A row of radio buttons, of which one is on."""
    buttons = [
        f'<label><input type="radio" name="{name}" value="{values[i] if values else i}"{" checked" * (i == chosen)}>'
        f"<span>{html.escape(title)}</span></label>"
        for i, title in enumerate(titles)
    ]
    return f"<fieldset><legend>{name}</legend>{''.join(buttons)}</fieldset>"


def _table(comparison: Comparison) -> str:
    """The scores, the better ones marked; nothing if there are none."""
    if not comparison.scores:
        return ""
    best = [max(values) for values in zip(*comparison.scores.values(), strict=True)]
    rows = []
    for title, (psnr, ssim) in comparison.scores.items():
        texts = f"{psnr:.2f} dB", "" if math.isnan(ssim) else f"{ssim:.4f}"
        cells = [
            f"<td{' class=best' * (value == top)}>{text}</td>"
            for value, top, text in zip((psnr, ssim), best, texts, strict=True)
        ]
        rows.append(f"<tr><th scope=row>{html.escape(title)}</th>{''.join(cells)}</tr>")
    about = f"On luma, with a border of {comparison.scale} pixels left out."
    head = "<tr><td></td><th scope=col>PSNR</th><th scope=col>SSIM</th></tr>"
    return f"<table><caption>{about}</caption>{head}{''.join(rows)}</table>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$name</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #18181b; --faint: #6b6b74; --line: #d6d6db; --mark: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #18181b; --ink: #f0f0f2; --faint: #a0a0aa; --line: #3a3a41; --mark: #fb923c; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1664px; margin: 0 auto; padding: 24px clamp(12px, 3vw, 32px); display: grid;
  grid-template-columns: minmax(0, 1fr); justify-items: center; gap: 16px; }
h1 { margin: 0; font-size: 22px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0; color: var(--faint); }
header { text-align: center; }
.choices { display: flex; flex-wrap: wrap; justify-content: center; gap: 12px 28px; width: 100%; }
fieldset { display: flex; flex-wrap: wrap; align-items: center; row-gap: 4px; margin: 0; padding: 0; border: 0; }
legend { float: left; padding: 0 10px 0 0; color: var(--faint); }
label span { display: block; padding: 3px 12px; border: 1px solid var(--line); margin-left: -1px; cursor: pointer; }
label:first-of-type span { border-radius: 6px 0 0 6px; }
label:last-of-type span { border-radius: 0 6px 6px 0; }
label input { position: absolute; opacity: 0; }
label :checked + span { background: var(--ink); color: var(--paper); border-color: var(--ink); }
label :focus-visible + span { outline: 2px solid var(--mark); outline-offset: 2px; }
#view { position: relative; max-width: 100%; overflow: hidden; }
#frame { overflow: auto; max-height: 70vh; scrollbar-width: none; touch-action: pan-y pinch-zoom; cursor: ew-resize; }
#frame.large { touch-action: auto; cursor: grab; }
#frame.large:active { cursor: grabbing; }
#stage { position: relative; user-select: none; -webkit-user-select: none; }
#stage img { position: absolute; inset: 0; width: 100%; height: 100%; }
#stage.zoomed img { image-rendering: pixelated; }
#stage img.over { z-index: 1; clip-path: inset(0 calc(100% - var(--split)) 0 0); }
#handle { position: absolute; inset: 0 auto 0 50%; z-index: 2; width: 44px; margin-left: -22px; cursor: ew-resize;
  touch-action: none; }
#handle::before { content: ""; position: absolute; inset: 0 auto 0 21px; width: 2px; background: #fff;
  box-shadow: 0 0 0 1px #0006; }
#handle svg { position: absolute; inset: auto 4px 24px; width: 36px; height: 36px; border-radius: 18px;
  background: #fff; box-shadow: 0 0 0 1px #0003, 0 1px 4px #0006; fill: none; stroke: #18181b; stroke-width: 2; }
output { position: absolute; z-index: 2; top: 8px; padding: 1px 9px; border-radius: 5px; background: #000a; color: #fff;
  font-size: 14px; pointer-events: none; }
#before { left: 8px; }
#after { right: 8px; }
#split { width: 100%; max-width: 480px; margin: 0; accent-color: var(--mark); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; padding-top: 6px; color: var(--faint); font-size: 14px; }
th, td { padding: 3px 16px; text-align: right; font-weight: 400; border-bottom: 1px solid var(--line); }
th[scope=row] { text-align: left; }
th[scope=col] { color: var(--faint); }
.best { font-weight: 700; }
@media (max-width: 400px) {
  label span, th, td { padding: 3px 7px; font-size: 14px; }
  legend { padding-right: 6px; }
}
</style>
</head>
<body>
<main>
<header><h1>$name</h1><p>$notes</p></header>
<div class="choices">$left$zoom$right</div>
<div id="view">
<div id="frame"><div id="stage">$images</div></div>
<output id="before"></output><output id="after"></output>
<div id="handle"><svg viewBox="0 0 36 36" aria-hidden="true"><path d="m14 12-6 6 6 6m8-12 6 6-6 6"/></svg></div>
</div>
<input id="split" type="range" value="50" aria-label="How much of the left image is seen, in per cent">
$scores
</main>
<script>
"use strict";
const [view, frame, stage, handle, split, before, after] =
  ["view", "frame", "stage", "handle", "split", "before", "after"].map(id => document.getElementById(id));
const images = [...stage.children], width = $width, height = $height, detail = [$x, $y];
let zoom = 1, share = 0.5;  // share: of the width that is seen, left of the handle

function chosen(name, otherwise) {
  const button = document.querySelector("input[name=" + name + "]:checked");
  return button ? Number(button.value) : otherwise;
}

function place() {
  stage.style.setProperty("--split", frame.scrollLeft + share * frame.clientWidth + "px");
  handle.style.left = 100 * share + "%";
  frame.classList.toggle("large", movable());
}

function movable() {
  return frame.scrollWidth > frame.clientWidth || frame.scrollHeight > frame.clientHeight;
}

function show() {
  const left = chosen("left", 0), right = chosen("right", 1);
  images.forEach((image, i) => {
    image.hidden = i != left && i != right;
    image.classList.toggle("over", i == left && left != right);
  });
  before.textContent = images[left].alt;
  after.textContent = images[right].alt;
  place();
}

function enlarge(times, x, y) {  // x, y: the pixel that comes to the middle
  zoom = times;
  stage.style.width = width * zoom + "px";
  stage.style.height = height * zoom + "px";
  stage.classList.toggle("zoomed", zoom > 1);
  frame.scrollTo(x * zoom - frame.clientWidth / 2, y * zoom - frame.clientHeight / 2);
  place();
}

function part(event) {
  const box = frame.getBoundingClientRect();
  share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  split.value = 100 * share;
  place();
}

function drag(element, begins, moves) {
  element.addEventListener("pointerdown", event => {
    if (event.button != 0 || !begins(event)) return;
    event.preventDefault();  // else the focus would go from the slider
    const [x, y, left, top] = [event.clientX, event.clientY, frame.scrollLeft, frame.scrollTop];
    const move = event => moves(event, left + x - event.clientX, top + y - event.clientY);
    element.setPointerCapture(event.pointerId);
    element.addEventListener("pointermove", move);
    const end = () => element.removeEventListener("pointermove", move);
    element.addEventListener("lostpointercapture", end, {once: true});
    move(event);
  });
}

drag(handle, () => { split.focus({preventScroll: true}); return true; }, part);
drag(frame, event => !movable(), part);
drag(frame, event => movable() && event.pointerType == "mouse", (event, left, top) => frame.scrollTo(left, top));
split.addEventListener("input", () => { share = split.value / 100; place(); });
frame.addEventListener("scroll", place);
window.addEventListener("resize", place);
document.querySelector(".choices").addEventListener("change", event => {
  if (event.target.name != "zoom") return show();
  // The detail, as long as it is in sight, comes to the middle; else what is there stays there.
  const size = [frame.clientWidth, frame.clientHeight], from = [frame.scrollLeft, frame.scrollTop];
  const inside = detail.every((at, i) => at * zoom > from[i] && at * zoom < from[i] + size[i]);
  const [x, y] = inside ? detail : from.map((at, i) => (at + size[i] / 2) / zoom);
  enlarge(Number(event.target.value), x, y);
});
const fitting = [4, 2, 1].find(times => width * times <= document.querySelector(".choices").clientWidth
  && height * times <= 0.7 * window.innerHeight) || 1;
document.querySelector("input[name=zoom][value='" + fitting + "']").checked = true;
enlarge(fitting, ...detail);
show();
</script>
</body>
</html>
""")
