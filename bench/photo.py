"""python -m bench.photo --hr DIR --scale 2: what mixtures are worth on compressed images, and `--model auto` on them.

Of each original the small image is made by MATLAB's bicubic, noised if asked for, saved as JPEG 4:2:0 in memory and
made larger. Prints mean PSNR on luma (a border of SCALE pixels left out, as for Set5 and Set14) of bicubic
interpolation, and in dB over that each share of the cleaning network and what auto chooses, by quality.

--drawings does the same to lines, lettering, a screenshot and a chart, one by one, and prints also how far flat areas
are from flat (`flat`), which must not be farther than by bicubic.

--fit DIR finds the best share at each quality on images held back for that (never Set5, Set14, B100, Urban100 or
Manga109), prints the table and takes it for auto; --write puts it into the package.
"""

import argparse
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench import drawings, machine
from edsr.evaluation import metrics
from edsr.images import find_images, read_image
from edsr.images.compression import LossyCompression, jpeg_quality
from edsr.images.resize import matlab_bicubic, matlab_downscale, matlab_round
from edsr.inference.upscaler import Upscaler
from edsr.weights import load_model, selection

QUALITIES = (95, 85, 75, 60, 40, 30)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIT_QUALITIES = (100, 98)
"""Fitted beside those of the table, because auto meets them as well."""
FIT_SHARES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)

FLAT = 8
"""Pixels around one that have to have its color for it to be in a flat area: a block of a JPEG."""

Network = Callable[[float], Callable[[np.ndarray], np.ndarray]]
"""Share of the cleaning network -> what makes [H, W, C] uint8 larger."""
Scores = dict[int | None, dict[str | float, float]]
"""Quality (None: not compressed) -> "bicubic", "auto" or a share -> mean PSNR in dB."""


def compressed(image: np.ndarray, quality: int) -> tuple[np.ndarray, bytes]:
    """uint8 [H, W, 1 or 3] through a JPEG 4:2:0, and the JPEG."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality, subsampling=2)
    return np.array(Image.open(file)).reshape(image.shape), file.getvalue()


def noisy(image: np.ndarray, level: float, seed: int) -> np.ndarray:
    """With Gaussian noise of that standard deviation in levels of 255, the same for the same seed."""
    noise = np.random.default_rng(seed).normal(0, level, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def psnr(result: np.ndarray, original: np.ndarray, scale: int) -> float:
    return metrics.psnr(*metrics.scored_region(result, original, scale))


def flat(result: np.ndarray, original: np.ndarray, scale: int) -> float:
    """Root mean square error of luma, in levels of 255, where the original is of one color FLAT pixels around.

    nan where nothing is.
    """
    side = 2 * FLAT + 1
    highest = lowest = np.pad(original, ((FLAT, FLAT), (FLAT, FLAT), (0, 0)), mode="edge")
    for axis in 0, 1:
        highest = np.lib.stride_tricks.sliding_window_view(highest, side, axis).max(-1)
        lowest = np.lib.stride_tricks.sliding_window_view(lowest, side, axis).min(-1)
    busy = (highest != lowest).any(2)[scale:-scale, scale:-scale]
    a, b = metrics.scored_region(result, original, scale)
    return float(np.sqrt(np.mean((a - b)[~busy] ** 2))) if not busy.all() else float("nan")


def scores(
    originals: Iterable[np.ndarray],
    network: Network,
    scale: int,
    qualities: Sequence[int | None],
    shares: Sequence[float],
    noise: float = 0,
    table: selection.Table | None = None,
    measure: Callable[[np.ndarray, np.ndarray, int], float] = psnr,
) -> Scores:
    """Means over the originals, uint8 [H, W, 1 or 3]. table: what auto goes by, the package's if None. measure: of a
    result and its original, at a scale."""
    sums: dict[int | None, dict[str | float, list[float]]] = {quality: {} for quality in qualities}
    for number, original in enumerate(originals):
        height, width = (side // scale * scale for side in original.shape[:2])
        original = original[:height, :width]
        small = matlab_downscale(original, scale)
        small = noisy(small, noise, number) if noise else small
        for quality in qualities:
            given, messages = small, None
            if quality is not None:
                given, data = compressed(small, quality)
                found = jpeg_quality(io.BytesIO(data))
                assert found is not None
                messages = LossyCompression("JPEG", found, True)
            smooth = matlab_round(matlab_bicubic(given.astype(np.float64), height, width))
            auto = 0.0 if messages is None else selection.share_for(messages.quality, scale, table)
            of_share = {share: measure(network(share)(given), original, scale) for share in {*shares, auto}}
            found = {"bicubic": measure(smooth, original, scale), "auto": of_share[auto]}
            for name, value in (found | {share: of_share[share] for share in shares}).items():
                sums[quality].setdefault(name, []).append(value)
        print(f"image {number + 1}", end="\r", file=sys.stderr, flush=True)
    return {
        quality: {name: float(np.mean(values)) for name, values in by_name.items()} for quality, by_name in sums.items()
    }


def best(shares: Sequence[float], values: Sequence[float]) -> float:
    """Where a curve through these values is highest: the top of the parabola through the best and its neighbors.

    shares: ascending, three or more. Never beyond the neighbors.
    """
    i = min(max(int(np.argmax(values)), 1), len(shares) - 2)
    x, y = np.array(shares[i - 1 : i + 2]), np.array(values[i - 1 : i + 2])
    a, b, _ = np.polyfit(x, y, 2)
    if a >= 0:  # no top
        return float(x[np.argmax(y)])
    return float(np.clip(-b / (2 * a), x[0], x[2]))


def fit(found: Scores, shares: Sequence[float]) -> list[list[float]]:
    """[[quality, best share], ...], qualities ascending, shares multiples of choice.STEP."""
    tops = {q: best(shares, [by_name[share] for share in shares]) for q, by_name in found.items() if q is not None}
    return [[q, round(round(tops[q] / selection.STEP) * selection.STEP, 2)] for q in sorted(tops)]


def markdown(found: Scores, shares: Sequence[float], auto: bool = True) -> str:
    """A table of gains over bicubic in dB, the best mixture of each column in bold. auto: whether it has a row."""
    names: dict[str | float, str] = {share: f"share {share:g}" for share in shares}
    names |= {0.0: selection.FAITHFUL, 1.0: selection.CLEAN} if shares else {}
    rows = [("", *("PNG" if q is None else str(q) for q in found))]
    rows.append(("bicubic, dB", *(f"{by_name['bicubic']:.2f}" for by_name in found.values())))
    for key in (*shares, "auto") if auto else shares:
        cells = []
        for by_name in found.values():
            top = max(by_name[share] for share in shares) if shares else None
            text = f"{by_name[key] - by_name['bicubic']:+.2f}"
            cells.append(f"**{text}**" if key != "auto" and by_name[key] == top else text)
        rows.append((names.get(key, "auto"), *cells))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|{'---:|' * len(found)}", *lines[1:]])


def drawn(
    network: Network, scale: int, qualities: Sequence[int | None], table: selection.Table | None = None
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Name of a drawing -> PSNR, and -> `flat`, of the faithful network, the cleaning one and auto."""
    made = drawings.drawings()
    by_measure = [
        {
            name: scores([image], network, scale, qualities, (0.0, 1.0), table=table, measure=measure)
            for name, image in made.items()
        }
        for measure in (psnr, flat)
    ]
    return by_measure[0], by_measure[1]


def drawn_markdown(gains: dict[str, Scores], flats: dict[str, Scores]) -> str:
    """Gains over bicubic in dB, and levels that flat areas are off."""
    ways = {selection.FAITHFUL: 0.0, selection.CLEAN: 1.0, "auto": "auto"}
    qualities = list(next(iter(gains.values())))
    rows = [("", "", *("PNG" if q is None else str(q) for q in qualities))]
    for name, found in gains.items():
        rows.append((name, "bicubic, dB", *(f"{found[q]['bicubic']:.2f}" for q in qualities)))
        for way, key in ways.items():
            rows.append(("", way, *(f"{found[q][key] - found[q]['bicubic']:+.2f}" for q in qualities)))
    for name, found in flats.items():
        if math.isnan(found[qualities[0]]["bicubic"]):
            continue  # a drawing without flat areas
        for way, key in ({"bicubic": "bicubic"} | ways).items():
            title = f"{name}, flat areas" if way == "bicubic" else ""
            rows.append((title, way, *(f"{found[q][key]:.2f}" for q in qualities)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|---|{'---:|' * len(qualities)}", *lines[1:]])


def write(path: Path, scale: int, points: list[list[float]]) -> None:
    """Puts the points of a scale into a table's file; the other scales stay."""
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    table[str(scale)] = points
    lines = [f'  "{key}": {json.dumps(table[key])}' for key in sorted(table)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def images(folder: str, most: int | None) -> Iterable[np.ndarray]:
    for path in find_images(folder)[:most]:
        yield read_image(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.photo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hr", metavar="DIR", help="originals to be scored on")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--qualities", type=int, nargs="+", default=QUALITIES, metavar="Q")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, metavar="S", help="of the cleaning network")
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0,), metavar="LEVELS", help="a table for each")
    parser.add_argument("--drawings", action="store_true", help="score drawings and a screenshot, made here")
    parser.add_argument("--fit", metavar="DIR", help="originals to find the best shares on")
    parser.add_argument("--write", action="store_true", help="put what --fit finds into the package")
    parser.add_argument("--faithful", default=selection.FAITHFUL, metavar="NAME|FILE", help="the one end")
    parser.add_argument("--clean", default=selection.CLEAN, metavar="NAME|FILE", help="the other")
    parser.add_argument("--most", type=int, metavar="N", help="of a folder's images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    if not (options.hr or options.fit or options.drawings):
        parser.error("give --hr, --drawings, --fit or several of them")
    if options.write and not options.fit:
        parser.error("--write needs --fit")
    run(options)


def run(options) -> None:
    scale, ready = options.scale, {}

    def network(share: float) -> Upscaler:
        if share not in ready:
            model = f"{options.faithful}:{1 - share!r}+{options.clean}:{share!r}"
            model = options.faithful if share == 0 else options.clean if share == 1 else model
            ready[share] = Upscaler(load_model(model, scale), options.device)
        return ready[share]

    print(machine.machine_line(machine.describe(str(network(0.0).device))))
    figures: dict = {"options": vars(options)}
    table = None
    if options.fit:
        qualities = sorted({*options.qualities, *FIT_QUALITIES}, reverse=True)
        found = scores(images(options.fit, options.most), network, scale, qualities, FIT_SHARES)
        points = fit(found, FIT_SHARES)
        table = {str(scale): points}
        print(f"\nx{scale}, {options.fit}: gain over bicubic in dB\n\n{markdown(found, FIT_SHARES, auto=False)}")
        print(f'\nbest shares: "{scale}": {json.dumps(points)}')
        figures["fit"] = points
        if options.write:
            write(selection.TABLE, scale, points)
            print(f"written into {selection.TABLE}")
    for noise in options.noise if options.hr else ():
        qualities = [None, *options.qualities]
        found = scores(images(options.hr, options.most), network, scale, qualities, options.shares, noise, table)
        message = f", noise of {noise:g} levels" if noise else ""
        print(
            f"\nx{scale}, {options.hr}{message}: gain over bicubic in dB\n\n{markdown(found, options.shares)}",
            flush=True,
        )
        figures[f"noise {noise:g}"] = [
            {"quality": quality} | {str(key): value for key, value in by_name.items()}
            for quality, by_name in found.items()
        ]
    if options.drawings:
        gains, flats = drawn(network, scale, [None, *options.qualities], table)
        print(f"\nx{scale}, drawings: gain over bicubic in dB, and flat areas' error in levels of 255\n")
        print(drawn_markdown(gains, flats), flush=True)
        figures["drawings"] = [
            {"drawing": name, "measure": measure, "quality": q} | {str(key): value for key, value in by_name.items()}
            for measure, by_drawing in (("psnr", gains), ("flat", flats))
            for name, found in by_drawing.items()
            for q, by_name in found.items()
        ]
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
