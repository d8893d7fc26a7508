"""Charts: small SVG pictures - layers by device, and curves such as the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from swarm.plan import Pipeline, Plan, Shard, Stage

WIDTH, HEIGHT, ROW = 760, 360, 20
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 56, 52  # margins around the curves
LETTER = 7.0  # width of one, about, at 12 pixels
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#b7791f", "#4a5568", "#0987a0")
GRID, INK, PALE = "#e2e8f0", "#4a5568", "#edf2f7"
LOGARITHMIC = 20.0  # ratio of the ends from which on an axis is logarithmic
Points = Sequence[tuple[float, float]]


# ---- layers by device


def layers_chart(plan: Plan, labels: Mapping[str, str]) -> str:
    """One bar for each shard over the layers it holds, as high as its share; SVG text."""
    layers = max((pipeline.layers for pipeline in plan.pipelines), default=1)
    used = {shard.device for _, shard in plan.shards()}
    spares = [label for device, label in labels.items() if device not in used]
    names = [labels.get(device, device) for device in used] + spares
    left = 16 + LETTER * max((len(name) for name in names), default=8)
    span = WIDTH - left - RIGHT
    parts, y = list[str](), 30.0
    for number, pipeline in enumerate(plan.pipelines):
        parts.append(_text(8, y + 14, f"pipeline {number + 1}", bold=True))
        y += ROW
        for stage, shard in _shards(pipeline):
            name = labels.get(shard.device, shard.device)
            parts.append(_text(16, y + 14, name))
            parts += _bar(stage, shard, (left, y, span / layers), COLOURS[number % len(COLOURS)])
            y += ROW
    if spares:
        parts.append(_text(8, y + 14, "spares: " + ", ".join(spares)[:96], colour=INK))
        y += ROW
    ruler = [_ruled(left + span * tick / layers, y, str(tick)) for tick in _layer_ticks(layers)]
    return _svg(WIDTH, y + 8, [_text(8, 18, "layers"), *ruler, *parts])


def _shards(pipeline: Pipeline) -> list[tuple[Stage, Shard]]:
    return [(stage, shard) for stage in pipeline.stages for shard in stage.shards]


def _bar(stage: Stage, shard: Shard, place: tuple[float, float, float], colour: str) -> list[str]:
    """The bar of one shard: pale as high as the layer, full as high as its share of it."""
    left, y, wide = place
    group = next((h for h in stage.holders if shard in h), stage.shards)
    share = (shard.kv + shard.mlp) / sum(s.kv + s.mlp for s in group)
    x, width, room = left + wide * stage.start, wide * stage.layers, ROW - 4
    high = max(2.0, room * share)
    note = f"{stage.start}-{stage.end - 1}" + (f", {share:.0%}" if share < 1 else "")
    title = f"layers {stage.start}-{stage.end - 1}, kv {shard.kv}, mlp {shard.mlp}"
    if width > LETTER * len(note) + 8:
        at = (x + 4, "white" if share == 1 else "#1a202c")
    else:
        at = _beside(x, width, len(note))
    shade = "" if share == 1 else ' fill-opacity="0.45"'
    return [
        f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="{room}" fill="{PALE}"/>',
        f'<rect x="{x:.1f}" y="{y + 2 + room - high:.1f}" width="{width:.1f}"'
        f' height="{high:.1f}" fill="{colour}"{shade}><title>{title}</title></rect>',
        _text(at[0], y + 14, note, colour=at[1], size=11),
    ]


def _beside(x: float, width: float, letters: int) -> tuple[float, str]:
    """Where a note too long for its bar stands: to its right, or to its left at the end."""
    right = x + width + 4
    fits = right + LETTER * letters < WIDTH
    return (right if fits else x - 4 - LETTER * letters), INK


def _layer_ticks(layers: int) -> list[int]:
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if layers / s <= 10), 200)
    return [*range(0, layers, step), layers]


def _ruled(x: float, bottom: float, name: str) -> str:
    line = f'<line x1="{x:.1f}" y1="24" x2="{x:.1f}" y2="{bottom:.1f}" stroke="{GRID}"/>'
    return line + _text(x, 18, name, colour=INK, size=11, anchor="middle")


# ---- curves


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    begin: float  # pixel of the low end
    end: float
    is_share: bool = False

    @property
    def is_logarithmic(self) -> bool:
        """Whether equal ratios are equally long."""
        return 0 < self.low * LOGARITHMIC <= self.high

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.is_logarithmic:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.begin + part * (self.end - self.begin)

    @property
    def ticks(self) -> list[float]:
        """Round values within the ends; the value itself where there is only one."""
        if self.low == self.high:
            return [self.low]
        if self.is_logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 4 else (1,)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = ((self.high - self.low) or 1.0) / 5
            size = 10.0 ** math.floor(math.log10(rough))
            step = next(s * size for s in (1, 2, 5, 10) if s * size >= rough)
            first = math.ceil(self.low / step - 1e-9)
            found = [step * (first + i) for i in range(12)]
        return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]

    def name(self, value: float) -> str:
        """A tick's label."""
        if self.is_share:
            return f"{value:.0%}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def curves_chart(
    title: str, axes: tuple[str, str], curves: Mapping[str, Points], *, shares: bool = False
) -> str:
    """Named curves over two axes (`shares`: the upright one from 0 to 100 %); SVG text.

    An axis is logarithmic where its values span more than a factor of twenty.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return _svg(WIDTH, 40, [_text(8, 24, f"{title}: no data")])
    across = [x for x, _ in points]
    x_axis = Axis(min(across), max(across), LEFT, WIDTH - RIGHT)
    top = 1.0 if shares else 1.05 * max(y for _, y in points)
    y_axis = Axis(0.0, top or 1.0, HEIGHT - BOTTOM, TOP, is_share=shares)
    parts = [_text(LEFT, 22, title, bold=True, size=14), *_axes(axes, x_axis, y_axis)]
    for number, (name, curve) in enumerate(curves.items()):
        parts += _curve(curve, (x_axis, y_axis), axes, COLOURS[number % len(COLOURS)])
        if name and len(curves) > 1:
            parts.append(_legend(number, name))
    rows = (len(curves) + 1) // 2 if len(curves) > 1 else 0
    return _svg(WIDTH, HEIGHT + (ROW * rows + 6 if rows else 0), parts)


def _curve(
    curve: Points, scales: tuple[Axis, Axis], axes: tuple[str, str], colour: str
) -> list[str]:
    x_axis, y_axis = scales
    places = [(x_axis.at(x), y_axis.at(y)) for x, y in curve]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, y), (across, up) in zip(places, curve, strict=True):
        note = f"{axes[0]}: {x_axis.name(across)}, {axes[1]}: {y_axis.name(up)}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
            f"<title>{escape(note)}</title></circle>"
        )
    return parts


def _legend(number: int, name: str) -> str:
    """A curve's name below the picture, two in a row."""
    x, y = LEFT + (number % 2) * (WIDTH - LEFT) / 2, HEIGHT + ROW * (number // 2) + 6
    colour = COLOURS[number % len(COLOURS)]
    swatch = f'<rect x="{x:.1f}" y="{y - 6}" width="14" height="4" fill="{colour}"/>'
    return swatch + _text(x + 20, y, name)


def _axes(axes: tuple[str, str], x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [_text(8, TOP - 16, axes[1], colour=INK)]
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, y + 4, y_axis.name(tick), colour=INK, anchor="end"))
    for tick in x_axis.ticks:
        x = x_axis.at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(_text(x, bottom + 18, x_axis.name(tick), colour=INK, anchor="middle"))
    name = axes[0] + (", logarithmic" if x_axis.is_logarithmic else "")
    parts.append(_text((LEFT + right) / 2, bottom + 38, name, colour=INK, anchor="middle"))
    return parts


def _text(x: float, y: float, text: str, **style: str | int | bool) -> str:
    """Text at a place; style: colour, size, bold, anchor."""
    weight = ' font-weight="bold"' if style.get("bold") else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{style.get("colour", "#1a202c")}"'
        f' font-size="{style.get("size", 12)}" text-anchor="{style.get("anchor", "start")}"'
        f"{weight}>{escape(text)}</text>"
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        ' font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
