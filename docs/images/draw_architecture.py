"""Writes docs/images/architecture.svg: the path of a request through the service.

python docs/images/draw_architecture.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

DRAWING = Path(__file__).with_name("architecture.svg")
_WIDTH, _HEIGHT = 1040, 470
_INK, _FAINT, _BLUE, _GREEN, _AMBER = "#1c2430", "#5c6878", "#1763e6", "#1f8a5b", "#b36b00"
_LINE_HEIGHT = 17


@dataclass(frozen=True)
class Box:
    """A component: position, title, and lines that describe it."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    colour: str = _BLUE

    def svg(self) -> str:
        """Returns the rectangle with centred text."""
        middle = self.x + self.width // 2
        top = self.y + self.height // 2 - _LINE_HEIGHT * len(self.lines) // 2 + 5
        texts = [_text(middle, top, self.title, bold=True)]
        for number, line in enumerate(self.lines, 1):
            texts.append(_text(middle, top + number * _LINE_HEIGHT, line, size=12, colour=_FAINT))
        return (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" '
            f'fill="#ffffff" stroke="{self.colour}" stroke-width="1.6"/>' + "".join(texts)
        )


def _text(  # noqa: PLR0913 - attributes of a text element
    x: int, y: int, text: str, *, size: int = 14, colour: str = _INK, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )


def _arrow(path: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="{_INK}" stroke-width="1.5"{dash} '
        'marker-end="url(#head)"/>'
    )


def _process(x: int, width: int, title: str, colour: str) -> str:
    return (
        f'<rect x="{x}" y="20" width="{width}" height="430" rx="14" fill="{colour}" '
        f'fill-opacity="0.06" stroke="{colour}" stroke-opacity="0.35"/>'
        + _text(x + width // 2, 46, title, colour=colour, bold=True)
    )


def drawing() -> str:
    """Returns the drawing as SVG."""
    boxes = (
        Box(20, 105, 92, 50, "HTTP", ("client",), _FAINT),
        Box(20, 185, 92, 50, "gRPC", ("client",), _FAINT),
        Box(20, 265, 92, 50, "OIP v2", ("client",), _FAINT),
        Box(168, 105, 92, 50, "rest", ("adapter",)),
        Box(168, 185, 92, 50, "rpc", ("adapter",)),
        Box(168, 265, 92, 50, "oip", ("adapter",)),
        Box(
            304,
            150,
            128,
            120,
            "Detector",
            ("admits, leases a", "slot, enforces the", "deadline, selects"),
        ),
        Box(476, 85, 132, 84, "decoding", ("decode and resize,", "in processes")),
        Box(
            476,
            220,
            132,
            100,
            "Batcher",
            ("one queue per", "bucket; isolates", "bad images"),
        ),
        Box(476, 372, 132, 58, "Supervisor", ("replaces engines",)),
        Box(
            680,
            105,
            110,
            250,
            "Slots",
            (
                "shared memory:",
                "images in,",
                "detections out;",
                "limit memory,",
                "create back-",
                "pressure",
            ),
            _AMBER,
        ),
        Box(862, 105, 140, 74, "normalise", ("pad, mask,", "on the device"), _GREEN),
        Box(862, 200, 140, 84, "Lite DETR", ("interleaved encoder,", "deformable kernels"), _GREEN),
        Box(862, 305, 140, 62, "top-k", ("boxes in pixels",), _GREEN),
    )
    arrows = (
        *(_arrow(f"M112 {y} H164") for y in (130, 210, 290)),
        _arrow("M260 130 C285 130 280 185 300 185"),
        _arrow("M260 210 H300"),
        _arrow("M260 290 C285 290 280 240 300 240"),
        _arrow("M432 180 C455 180 450 127 472 127"),
        _arrow("M432 240 C455 240 450 265 472 265"),
        _arrow("M608 127 C645 127 640 150 676 150"),
        _arrow("M790 142 H858"),
        _arrow("M932 179 V196"),
        _arrow("M932 284 V301"),
        _arrow("M862 340 H794"),
        _arrow("M680 320 C650 320 650 290 612 290"),
        _arrow("M608 245 C640 245 640 225 676 225", dashed=True),
        _arrow("M542 372 V324", dashed=True),
        _arrow("M608 408 H858", dashed=True),
    )
    notes = (
        _text(735, 400, "messages, watchdog, canary", size=12, colour=_FAINT),
        _text(932, 412, "one per device", size=12, colour=_FAINT),
        _text(368, 330, "Prometheus metrics, JSON logs,", size=12, colour=_FAINT),
        _text(368, 347, "health, readiness, drain", size=12, colour=_FAINT),
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="system-ui, sans-serif" role="img" '
        'aria-label="The path of a request: edge process, shared memory, engine process">\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{_INK}"/>'
        "</marker></defs>\n"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(
            (
                _process(148, 480, "edge process: asyncio, never imports torch", _BLUE),
                _process(842, 180, "engine process", _GREEN),
                *(box.svg() for box in boxes),
                *arrows,
                *notes,
            )
        )
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    DRAWING.write_text(drawing(), encoding="utf-8")
    print(DRAWING)
