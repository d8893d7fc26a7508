"""Charts: small SVG pictures - layers by device, and curves such as the Pareto front."""

from collections.abc import Mapping, Sequence
from html import escape

from swarm.plan import Plan

WIDTH, ROW, LEFT, MARGIN = 720, 18, 190, 46
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#b7791f", "#4a5568", "#0987a0")
Points = Sequence[tuple[float, float]]


def layers_chart(plan: Plan, labels: Mapping[str, str]) -> str:
    """One bar for each shard over the layers it holds, as high as its share; SVG text."""
    bars: list[str] = []
    for number, pipeline in enumerate(plan.pipelines):
        colour = COLOURS[number % len(COLOURS)]
        for stage in pipeline.stages:
            whole = sum(shard.kv + shard.mlp for shard in (stage.holders or (stage.shards,))[0])
            for shard in stage.shards:
                y = ROW * len(bars)
                x = LEFT + (WIDTH - LEFT) * stage.start / pipeline.layers
                wide = (WIDTH - LEFT) * stage.layers / pipeline.layers
                high = max(3.0, (ROW - 4) * min(1.0, (shard.kv + shard.mlp) / whole))
                name = escape(labels.get(shard.device, shard.device))
                bars.append(
                    f'<text x="4" y="{y + 13}">{name}</text>'
                    f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{wide:.1f}" height="{high:.1f}"'
                    f' fill="{colour}"><title>layers {stage.start}-{stage.end - 1},'
                    f" kv {shard.kv}, mlp {shard.mlp}</title></rect>"
                )
    return _svg(WIDTH + 4, ROW * len(bars) + 8, bars)


def curves_chart(title: str, axes: tuple[str, str], curves: Mapping[str, Points]) -> str:
    """Named curves over two axes; SVG text."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return _svg(WIDTH, 40, [f'<text x="8" y="24">{escape(title)}: no data</text>'])
    wide, high = (min(x for x, _ in points), max(x for x, _ in points)), max(y for _, y in points)
    height = 340

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - wide[0]) / ((wide[1] - wide[0]) or 1.0)
        return (
            MARGIN + share * (WIDTH - 2 * MARGIN - 130),
            height - MARGIN - y / (high or 1.0) * (height - 2 * MARGIN),
        )

    parts = [f'<text x="{MARGIN}" y="20" font-weight="bold">{escape(title)}</text>']
    parts += _axes(axes, wide, high, height)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in (at(*point) for point in curve)
        ]
        y = MARGIN + 18 * number
        parts.append(f'<text x="{WIDTH - 165}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return _svg(WIDTH, height, parts)


def _axes(axes: tuple[str, str], wide: tuple[float, float], high: float, height: int) -> list[str]:
    right, bottom = WIDTH - MARGIN - 130, height - MARGIN
    return [
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#888"/>',
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{MARGIN}" y2="{MARGIN}" stroke="#888"/>',
        f'<text x="{MARGIN}" y="{bottom + 16}">{wide[0]:.4g}</text>',
        f'<text x="{right - 30}" y="{bottom + 16}">{wide[1]:.4g}</text>',
        f'<text x="{(MARGIN + right) / 2 - 60}" y="{bottom + 34}">{escape(axes[0])}</text>',
        f'<text x="4" y="{MARGIN}">{high:.4g}</text>',
        f'<text x="4" y="{MARGIN - 14}">{escape(axes[1])}</text>',
    ]


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
