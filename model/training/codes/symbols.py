"""Random payloads and their symbols, as bitmaps with one cell per module."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zxingcpp

from model.training.codes.common import (
    Bits,
    chance,
    integer,
    log_uniform,
    pick,
    uniform,
    weighted,
)

CLASS_NAMES: tuple[str, ...] = ("qr_code", "data_matrix", "aztec", "pdf417", "linear")
CLASS_WEIGHTS: tuple[float, ...] = (0.22, 0.2, 0.17, 0.17, 0.24)
QR_CODE, DATA_MATRIX, AZTEC, PDF417, LINEAR = range(5)

_WORDS = (
    "order", "item", "lot", "batch", "serial", "alpha", "delta", "north", "river", "cloud",
    "paper", "green", "ticket", "seat", "gate", "train", "parcel", "store", "fresh", "milk",
    "sugar", "coffee", "note", "class", "model", "valve", "pump", "board", "steel", "lamp",
)  # fmt: skip
_ALPHABETS = (
    string.digits,
    string.ascii_uppercase + string.digits + " -.$/+%",
    string.ascii_letters + string.digits + string.punctuation,
)
_FORMATS = zxingcpp.BarcodeFormat


@dataclass(frozen=True)
class Symbol:
    """One code before it is printed.

    Attributes:
        bits: [rows, columns] bool, True where ink goes; its bounds are the symbol's bounds.
        label: Class index into CLASS_NAMES.
        payload: The text in it.
        caption: Human-readable text to print near it, empty for none.
        kind: Name of the symbology.
        stretch: Height over width of one cell as printed.
        guard: Rows at the bottom that only long guard bars reach; 0 for none.
        addon: Printed to the right, without being a part of the code; None for none.
    """

    bits: Bits
    label: int
    payload: str
    caption: str
    kind: str
    stretch: float = 1.0
    guard: int = 0
    addon: Symbol | None = None


def random_digits(rng: np.random.Generator, count: int) -> str:
    """Draws decimal digits."""
    return "".join(str(d) for d in rng.integers(0, 10, count))


def _letters(rng: np.random.Generator, count: int, alphabet: str) -> str:
    return "".join(alphabet[i] for i in rng.integers(0, len(alphabet), count))


def _check_digit(body: str) -> str:
    """Computes the GS1 mod-10 check digit of a digit string."""
    total = sum(int(d) * (3 if i % 2 == 0 else 1) for i, d in enumerate(reversed(body)))
    return str(-total % 10)


def random_text(rng: np.random.Generator, length: int) -> str:
    """Makes a payload of about `length` characters: digits, words, links, binary-like text."""
    style = integer(rng, 0, 5)
    if style < len(_ALPHABETS):
        return _letters(rng, length, _ALPHABETS[style])
    if style == len(_ALPHABETS):
        tail = _letters(rng, max(1, length - 16), string.ascii_letters + string.digits)
        return f"https://{pick(rng, _WORDS)}.io/{tail}"[: max(length, 12)]
    count = length // 5 + 1
    words = " ".join(pick(rng, _WORDS) for _ in range(count))
    return words[:length].strip() or "a"


def write_symbol(payload: str, name: str, **options: object) -> Bits:
    """Renders a payload; raises ValueError or RuntimeError if it does not fit."""
    code = zxingcpp.create_barcode(payload, getattr(_FORMATS, name), **options)
    image = np.array(code.to_image(scale=1, add_quiet_zones=False))
    ink = image < 128  # noqa: PLR2004
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if name in ("Aztec", "AztecRune"):  # random outer layers may start with white cells
        return np.asarray(ink)
    return np.asarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _fit(
    rng: np.random.Generator, longest: int, write: Callable[[str], Bits], shortest: int = 1
) -> tuple[Bits, str]:
    """Draws payloads until one fits, each time shorter."""
    reach = (longest / shortest) ** (rng.random() ** 1.3)
    length = max(shortest, int(shortest * reach))
    for _ in range(12):
        payload = random_text(rng, length)
        try:
            return write(payload), payload
        except (ValueError, RuntimeError):
            length = max(1, length // 2)
    payload = random_digits(rng, 3)
    return write(payload), payload


def _qr(rng: np.random.Generator) -> Symbol:
    kind = weighted(rng, [("QRCode", 0.84), ("MicroQRCode", 0.08), ("RMQRCode", 0.08)])
    longest = {"QRCode": 900, "MicroQRCode": 12, "RMQRCode": 60}[kind]
    level = pick(rng, "LMQH" if kind == "QRCode" else "LM" if kind == "MicroQRCode" else "MH")
    version = integer(rng, 2, 10) if kind == "QRCode" and chance(rng, 0.3) else 0
    options: dict[str, object] = {"version": version} if version else {}
    if kind != "MicroQRCode":
        options["ec_level"] = level
    bits, payload = _fit(rng, longest, lambda text: write_symbol(text, kind, **options), 4)
    return Symbol(bits, QR_CODE, payload, "", kind)


def _data_matrix(rng: np.random.Generator) -> Symbol:
    shape = weighted(rng, [("square", 0.72), ("auto", 0.1), ("rectangle", 0.18)])
    options: dict[str, object] = {"force_square": True} if shape == "square" else {}
    longest = 700
    if shape == "rectangle":
        options, longest = {"version": integer(rng, 25, 30)}, 30
    bits, payload = _fit(rng, longest, lambda text: write_symbol(text, "DataMatrix", **options), 2)
    return Symbol(bits, DATA_MATRIX, payload, "", f"DataMatrix-{shape}")


def _aztec(rng: np.random.Generator) -> Symbol:
    if chance(rng, 0.08):
        payload = str(integer(rng, 0, 255))
        return Symbol(write_symbol(payload, "AztecRune"), AZTEC, payload, "", "AztecRune")
    options: dict[str, object] = {}
    if chance(rng, 0.3):
        options["version"] = integer(rng, 1, 16)
    bits, payload = _fit(rng, 900, lambda text: write_symbol(text, "Aztec", **options), 2)
    return Symbol(bits, AZTEC, payload, "", "Aztec")


def _pdf417(rng: np.random.Generator) -> Symbol:
    kind = weighted(rng, [("PDF417", 0.72), ("CompactPDF417", 0.12), ("MicroPDF417", 0.16)])
    widest, longest = (4, 110) if kind == "MicroPDF417" else (9, 600)
    options: dict[str, object] = {}
    if chance(rng, 0.7):
        options["columns"] = integer(rng, 1, widest)
    if kind != "MicroPDF417" and chance(rng, 0.4):
        options["ec_level"] = str(integer(rng, 0, 5))
    bits, payload = _fit(rng, longest, lambda text: write_symbol(text, kind, **options), 3)
    cell = 2 if kind == "MicroPDF417" else 3
    rows = bits[::cell]
    tall = cell * pick(rng, (1.0, 1.0, 1.0, 0.67, 1.34, 1.67))
    return Symbol(rows, PDF417, payload, "", kind, tall)


def _gs1(rng: np.random.Generator) -> str:
    """Makes a bracketed GS1 element string for DataBar Expanded."""
    body = random_digits(rng, 13)
    parts = [f"(01){body}{_check_digit(body)}"]
    extras = [
        f"(3103){random_digits(rng, 6)}",
        f"(17)2{integer(rng, 1, 9)}0{integer(rng, 1, 9)}1{integer(rng, 0, 9)}",
        f"(10){_letters(rng, integer(rng, 2, 10), string.ascii_uppercase + string.digits)}",
        f"(21){_letters(rng, integer(rng, 2, 10), string.digits)}",
    ]
    order = rng.permutation(len(extras))[: integer(rng, 0, 3)]
    parts += [extras[i] for i in order]
    return "".join(parts if chance(rng, 0.75) or len(parts) == 1 else parts[1:])


_LINEAR_SHARES: tuple[tuple[str, float], ...] = (
    ("EAN13", 0.15),
    ("EAN8", 0.06),
    ("UPCA", 0.07),
    ("UPCE", 0.06),
    ("Code128", 0.14),
    ("Code39", 0.1),
    ("Code93", 0.06),
    ("ITF", 0.08),
    ("Codabar", 0.06),
    ("DataBar", 0.05),
    ("DataBarLtd", 0.03),
    ("DataBarStk", 0.03),
    ("DataBarStkOmni", 0.03),
    ("DataBarExp", 0.09),
    ("DataBarExpStk", 0.06),
)


_FIXED_DIGITS = {  # leading text and number of random digits; the writer adds check digits
    "EAN13": ("", 12),
    "EAN8": ("", 7),
    "UPCA": ("", 11),
    "UPCE": ("0", 6),
    "DataBar": ("", 13),
    "DataBarLtd": ("0", 12),
    "DataBarStk": ("", 13),
    "DataBarStkOmni": ("", 13),
}


def _linear_payload(rng: np.random.Generator, kind: str) -> str:
    upper = string.ascii_uppercase + string.digits
    length = int(log_uniform(rng, 3, 22))
    fixed = _FIXED_DIGITS.get(kind)
    if fixed:
        return fixed[0] + random_digits(rng, fixed[1])
    if kind == "ITF":
        return random_digits(rng, 2 * max(1, length // 2))
    if kind == "Codabar":
        return pick(rng, "ABCD") + random_digits(rng, length) + pick(rng, "ABCD")
    if kind.startswith("DataBarExp"):
        return _gs1(rng)
    if kind == "Code128":
        upper = string.digits if chance(rng, 0.4) else upper + string.ascii_lowercase
    return _letters(rng, length, upper)


def _linear(rng: np.random.Generator) -> Symbol:
    kind = weighted(rng, _LINEAR_SHARES)
    payload = _linear_payload(rng, kind)
    options: dict[str, object] = {}
    if kind == "DataBarExpStk":
        options["columns"] = integer(rng, 1, 4)
    bits = write_symbol(payload, kind, **options)
    caption = f"*{payload}*" if kind == "Code39" and chance(rng, 0.4) else payload
    stacked = kind in ("DataBarStk", "DataBarStkOmni", "DataBarExpStk")
    if stacked:
        return Symbol(bits, LINEAR, payload, caption, kind, uniform(rng, 0.6, 1.4))
    row = bits[bits.shape[0] // 3]
    shape = log_uniform(rng, 1.15, 4.0) if chance(rng, 0.75) else log_uniform(rng, 3.0, 12.0)
    height = max(6, round(row.size / shape))
    rows = np.repeat(row[None], height, axis=0)
    guard = 0
    if kind in ("EAN13", "EAN8", "UPCA", "UPCE") and height > 12 and chance(rng, 0.7):  # noqa: PLR2004
        guard = integer(rng, 2, 6)
        rows = np.concatenate([rows, np.repeat(bits[-1][None], guard, axis=0)])
    if kind in ("EAN13", "EAN8", "UPCA"):
        caption = payload + _check_digit(payload)
    return Symbol(rows, LINEAR, payload, caption, kind, guard=guard)


_MAKERS = (_qr, _data_matrix, _aztec, _pdf417, _linear)


def random_symbol(rng: np.random.Generator, label: int | None = None) -> Symbol:
    """Draws a symbol.

    Args:
        rng: Source of randomness.
        label: Class index, or None to draw it by CLASS_WEIGHTS.

    Returns:
        The symbol with its true bounds as bitmap bounds.
    """
    if label is None:
        label = weighted(rng, list(enumerate(CLASS_WEIGHTS)))
    while True:
        try:
            return _MAKERS[label](rng)
        except (ValueError, RuntimeError):  # a few random payloads are not allowed: draw again
            continue
