"""Labels, tickets and packs: flat prints with text, rules and codes that zxing-cpp draws."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import zxingcpp
from PIL import Image, ImageDraw, ImageFont

from .scene import Print, PrintedCode

_PIXELS_PER_CM = 80
_INK = (32, 31, 34)
Tone = tuple[int, int, int]

_FORMATS = {
    "QRCode": "qr_code",
    "DataMatrix": "data_matrix",
    "Aztec": "aztec",
    "PDF417": "pdf417",
    "Code128": "linear",
    "EAN13": "linear",
    "EAN8": "linear",
    "UPCA": "linear",
    "ITF": "linear",
}


class Sheet:
    """A print being laid out; all measures are centimetres from its top left.

    Args:
        width: of the sheet.
        height: of the sheet.
        paper: its colour.
        radius: of its corners.
    """

    def __init__(
        self, width: float, height: float, paper: Tone = (246, 244, 239), radius: float = 0.0
    ) -> None:
        self._size = (width, height)
        pixels = (round(width * _PIXELS_PER_CM), round(height * _PIXELS_PER_CM))
        self._image = Image.new("RGB", pixels, paper)
        self._draw = ImageDraw.Draw(self._image)
        self._radius = radius
        self._paper = paper
        self._codes: list[PrintedCode] = []

    def text(  # noqa: PLR0913 - options, by keyword
        self,
        left: float,
        top: float,
        words: str,
        height: float,
        *,
        ink: Tone = _INK,
        bold: bool = False,
        anchor: str = "la",
    ) -> Sheet:
        """Writes a line; `height` is the size of the type, `anchor` is Pillow's."""
        pixels = height * _PIXELS_PER_CM
        self._draw.text(
            (left * _PIXELS_PER_CM, top * _PIXELS_PER_CM),
            words,
            fill=ink,
            font=_font(pixels),
            anchor=anchor,
            stroke_width=max(1, round(pixels / 28)) if bold else 0,
        )
        return self

    def fill(
        self, box: tuple[float, float, float, float], tone: Tone, *, radius: float = 0.0
    ) -> Sheet:
        """Fills a rectangle xyxy."""
        pixels = tuple(value * _PIXELS_PER_CM for value in box)
        self._draw.rounded_rectangle(pixels, radius * _PIXELS_PER_CM, fill=tone)
        return self

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, tone: Tone = _INK
    ) -> Sheet:
        """Draws a straight rule."""
        points = [(x * _PIXELS_PER_CM, y * _PIXELS_PER_CM) for x, y in (start, end)]
        self._draw.line(points, fill=tone, width=max(1, round(width * _PIXELS_PER_CM)))
        return self

    def disc(self, centre: tuple[float, float], radius: float, tone: Tone) -> Sheet:
        """Fills a circle."""
        x, y, r = (value * _PIXELS_PER_CM for value in (*centre, radius))
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=tone)
        return self

    def code(  # noqa: PLR0913 - what and where
        self,
        kind: str,
        payload: str,
        left: float,
        top: float,
        *,
        width: float,
        height: float | None = None,
        **options: object,
    ) -> Sheet:
        """Prints a code without its quiet zone: leave room around it.

        Args:
            kind: zxing-cpp's name of the format.
            payload: its text.
            left: of its first module.
            top: of its first module.
            width: from its first to its last module.
            height: stretched to this; as the symbol's own shape has it where None.
            options: of zxing-cpp's writer.
        """
        bits = _modules(kind, payload, **options)
        rows, columns = bits.shape
        tall = width * rows / columns if height is None else height
        size = (round(width * _PIXELS_PER_CM), round(tall * _PIXELS_PER_CM))
        ink = Image.fromarray(np.where(bits, 255, 0).astype(np.uint8))
        mask = ink.resize(size, Image.Resampling.BOX if columns > size[0] else 0)
        place = (round(left * _PIXELS_PER_CM), round(top * _PIXELS_PER_CM))
        self._image.paste(_INK, (*place, place[0] + size[0], place[1] + size[1]), mask)
        box = (left, top, left + width, top + tall)
        self._codes.append(PrintedCode(_FORMATS[kind], payload, box))
        return self

    def done(self) -> Print:
        """The finished print."""
        mask = Image.new("L", self._image.size, 0)
        outline = (0, 0, self._image.width - 1, self._image.height - 1)
        radius = self._radius * _PIXELS_PER_CM
        ImageDraw.Draw(mask).rounded_rectangle(outline, radius, fill=255)
        layers = (np.asarray(self._image, np.float32), np.asarray(mask, np.float32))
        return Print(np.dstack(layers), self._size, tuple(self._codes))


@functools.cache
def _font(pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(pixels)


def _modules(kind: str, payload: str, **options: object) -> npt.NDArray[np.bool_]:
    """The symbol as bool [rows, columns], True where ink goes, cut to its bounds."""
    code = zxingcpp.create_barcode(payload, getattr(zxingcpp.BarcodeFormat, kind), **options)
    ink = np.array(code.to_image(scale=1, add_quiet_zones=False)) < 128  # noqa: PLR2004
    if kind == "Aztec":  # its outermost layer may begin with white modules
        return np.asarray(ink)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return np.asarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def shipping_label() -> Print:
    """A parcel's label with a QR code and a Code 128."""
    sheet = Sheet(13.6, 11.4, radius=0.15)
    sheet.text(0.6, 0.5, "NORDWIND", 0.75, bold=True)
    sheet.line((0.5, 1.5), (5.6, 1.5), 0.06)
    sheet.text(0.6, 1.8, "FROM  Harbour Books", 0.42)
    sheet.text(0.6, 2.6, "TO", 0.42)
    sheet.text(0.6, 3.1, "A. Lindqvist", 0.8, bold=True)
    sheet.text(0.6, 4.05, "17 Orchard Lane", 0.55)
    sheet.text(0.6, 4.8, "4021 MEADOWTON", 0.5)
    sheet.fill((0.6, 5.8, 3.4, 6.8), _INK)
    sheet.text(2.0, 6.3, "EXPRESS", 0.5, ink=(246, 244, 239), bold=True, anchor="mm")
    sheet.code("QRCode", "https://nordwind.example/t/NW4021887", 6.3, 0.6, width=6.4, ec_level="M")
    sheet.line((0.5, 7.3), (13.1, 7.3), 0.06)
    sheet.code("Code128", "NW4021887365", 1.6, 7.75, width=10.4, height=2.5)
    sheet.text(6.8, 10.45, "NW 4021 8873 65", 0.55, anchor="ma")
    return sheet.done()


def boarding_pass() -> Print:
    """An airline's boarding pass with a PDF417."""
    sheet = Sheet(20.2, 7.8, (250, 249, 245), radius=0.3)
    blue = (28, 84, 138)
    sheet.fill((0.0, 0.0, 20.2, 1.3), blue)
    sheet.text(0.6, 0.25, "AURORA AIR", 0.8, ink=(250, 249, 245), bold=True)
    sheet.text(13.6, 0.35, "BOARDING PASS", 0.6, ink=(250, 249, 245), anchor="ra")
    sheet.text(0.6, 1.6, "NAME", 0.32, ink=blue)
    sheet.text(0.6, 1.95, "LINDQVIST / ANNA", 0.6)
    for left, name, value in (
        (7.2, "FLIGHT", "AU 314"),
        (10.0, "SEAT", "12A"),
        (11.9, "GATE", "B7"),
    ):
        sheet.text(left, 1.6, name, 0.32, ink=blue)
        sheet.text(left, 1.95, value, 0.6, bold=True)
    sheet.code(
        "PDF417", "M1LINDQVIST/ANNA EABC123 OSLLISAU 0314 164Y012A0047", 0.9, 3.2,
        width=11.6, height=3.9, columns=4,
    )  # fmt: skip
    for number in range(26):
        sheet.line((14.2, 0.1 + number * 0.3), (14.2, 0.22 + number * 0.3), 0.04, (150, 150, 150))
    sheet.text(14.7, 1.7, "OSL", 1.05, bold=True)
    sheet.text(17.3, 1.7, "LIS", 1.05, bold=True)
    sheet.text(14.7, 3.4, "Oslo", 0.45)
    sheet.text(17.3, 3.4, "Lisbon", 0.45)
    sheet.text(14.7, 4.5, "BOARDING", 0.32, ink=blue)
    sheet.text(14.7, 4.85, "17:25", 1.1, bold=True)
    sheet.text(14.7, 6.5, "AU 314   12A", 0.55)
    return sheet.done()


def train_ticket() -> Print:
    """A railway ticket with an Aztec code."""
    sheet = Sheet(9.4, 8.6, (244, 236, 214), radius=0.2)
    green = (44, 106, 78)
    sheet.fill((0.0, 0.0, 9.4, 1.2), green)
    sheet.text(0.5, 0.25, "VALLEY RAIL", 0.7, ink=(244, 236, 214), bold=True)
    sheet.text(0.5, 1.55, "Meadowton", 0.5, bold=True)
    sheet.text(8.9, 1.55, "Port Selby", 0.5, bold=True, anchor="ra")
    sheet.line((3.7, 1.85), (5.7, 1.85), 0.05, green)
    sheet.code("Aztec", "MDT-PSL 7Q2K", 2.1, 2.55, width=5.2)
    sheet.text(4.7, 8.0, "14 JUN   single   2nd class", 0.4, anchor="ma")
    return sheet.done()


def medicine_top() -> Print:
    """The top of a medicine box with a Data Matrix."""
    sheet = Sheet(13.0, 7.6, (248, 248, 248), radius=0.06)
    teal = (18, 128, 132)
    sheet.fill((0.0, 0.0, 1.1, 7.6), teal)
    sheet.text(1.6, 0.7, "Calmurin", 1.15, ink=teal, bold=True)
    sheet.text(1.6, 2.15, "250 mg", 0.7)
    sheet.text(1.6, 3.15, "30 film-coated", 0.45)
    sheet.text(1.6, 3.65, "tablets", 0.45)
    sheet.text(1.6, 5.2, "LOT  K7731", 0.42)
    sheet.text(1.6, 5.75, "EXP  2027-03", 0.42)
    sheet.text(1.6, 6.3, "SN   90217745", 0.42)
    sheet.code("DataMatrix", "0104012345678901", 7.2, 1.2, width=5.2)
    return sheet.done()


def menu_card() -> Print:
    """A bar's card with one large QR code."""
    sheet = Sheet(15.0, 19.0, (250, 246, 236), radius=0.6)
    brown = (94, 58, 36)
    sheet.line((0.7, 0.7), (14.3, 0.7), 0.05, brown).line((0.7, 18.3), (14.3, 18.3), 0.05, brown)
    sheet.text(7.5, 1.2, "Solstice Bar", 1.5, ink=brown, bold=True, anchor="ma")
    sheet.text(7.5, 3.3, "our menu, fresh every day", 0.7, ink=brown, anchor="ma")
    sheet.code(
        "QRCode", "https://solstice-bar.example/menu?table=12", 2.6, 4.9, width=9.8, ec_level="Q"
    )
    sheet.text(7.5, 15.6, "point your camera here", 0.75, ink=brown, anchor="ma")
    sheet.text(7.5, 16.7, "table 12", 0.95, ink=brown, bold=True, anchor="ma")
    return sheet.done()


def price_tag(name: str, detail: str, price: str, payload: str) -> Print:
    """A shelf's price tag with an EAN-13."""
    sheet = Sheet(9.4, 5.6, (252, 251, 246), radius=0.12)
    sheet.fill((0.0, 0.0, 9.4, 0.5), (214, 172, 36))
    sheet.text(0.4, 0.75, name, 0.72, bold=True)
    sheet.text(0.4, 1.6, detail, 0.42)
    whole, cents = price.split(".")
    sheet.text(7.9, 0.75, whole, 1.5, bold=True, anchor="ra")
    sheet.text(8.0, 0.85, cents, 0.75, bold=True)
    sheet.code("EAN13", payload, 1.3, 2.6, width=6.8, height=2.1)
    sheet.text(4.7, 4.8, f"{payload[0]} {payload[1:7]} {payload[7:]}", 0.55, anchor="ma")
    return sheet.done()
