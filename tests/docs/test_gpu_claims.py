"""A figure about GPUs says where it was measured, or that it was not."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES
from tests.docs.test_pages import text_of

_ABOUT_GPUS = re.compile(r"\b(GPUs?|CUDA|cuda|cuDNN|cuBLAS\w*|NVIDIA|[HAB][12]00|sm_\d+|RTX)\b")
# Times, rates, bytes moved, shares and ratios; not settings, sizes in files, versions or limits.
_FIGURE = re.compile(
    r"\d[\d.,]*(?:x\b|\s?(?:ms|µs|us|images/s|img/s|images per second|[GT]B/s|GB an image|"
    r"MB read|T?FLOP/s|%|times\b))"
)
# Comparisons without a figure, in the sentence or cell of a table that names a GPU.
_COMPARED = re.compile(
    r"\b(?:several|many) times\b|\b(?:fast|slow|cheap)(?:er|est)\b|\b(?:nearly )?idle\b"
)
_SENTENCES = re.compile(r"(?<=[.;:|])\s+")

# Where it was measured or which model it is from; or that it was not measured.
_SOURCE = re.compile(
    r"measured on (?:an?|the|one) \S|not (?:yet )?(?:been )?(?:measured|run|known)|never run|"
    r"(?:has|have|was|were) not run|emulated|without (?:a GPU|one)|no GPU was available|"
    r"none of \S+ \S+ has run|a model of|roofline model|counted",
    re.IGNORECASE,
)


def claims(text: str) -> list[str]:
    """The blocks of a page with a figure about GPUs and no word on where it is from.

    A block is a paragraph, list item or table with the headings above it and, for a table, the
    paragraph before it.
    """
    found, headings, before = [], dict[int, str](), ""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=- )", text):
        if heading := re.match(r"(#+) (.+)", block):
            depth = len(heading[1])
            headings = {d: title for d, title in headings.items() if d < depth}
            headings[depth] = heading[2]
        context = "\n".join((*headings.values(), before if block.startswith("|") else "", block))
        has_figure = _ABOUT_GPUS.search(context) and _FIGURE.search(block)
        if (has_figure or _compares_gpus(block)) and not _SOURCE.search(context):
            found.append(block)
        before = block
    return found


def _compares_gpus(block: str) -> bool:
    sentences = _SENTENCES.split(" ".join(block.split()))
    return any(_ABOUT_GPUS.search(each) and _COMPARED.search(each) for each in sentences)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "docker/README.md"])
def test_a_figure_about_gpus_says_where_it_is_from(page: str) -> None:
    assert claims(text_of(page)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("On a GPU an image takes 3 ms.", 1),
        ("An H200 detects in 640 images/s.", 1),
        ("CUDA graphs make it 1.5x as fast.", 1),
        ("## The engine on a GPU\n\nIt takes 3 ms.", 1),
        ("Kernels for GPUs:\n\n| kernel | time |\n|---|---|\n| plain | 35 µs |", 1),
        ("- On a GPU it is fast.\n- On an RTX 3090 it takes 5 ms.", 1),
        ("On a GPU float16 is faster.", 1),
        ("| flag | meaning |\n|---|---|\n| `--x` | fp16, on GPUs many times as fast |", 1),
        ("On a GPU float16 should be\nfaster (not measured yet).", 0),
        ("A GPU is used if there is one. Other numbers are slower.", 0),
        ("Measured on an H200: an image takes 3 ms.", 0),
        ("On a GPU an image should take 3 ms; not measured yet.", 0),
        ("## Not yet run\n\nOn a GPU: has not run.\n\n| GPU | goal |\n|---|---|\n| a | 3 ms |", 0),
        ("On a CPU an image takes 3 ms.", 0),
        ("On a GPU it uses 512 graphs and a warm-up of 60 s.", 0),
        ("```sh\nnvidia-smi # a GPU in 3 ms\n```", 0),
    ],
)
def test_a_figure_without_its_source_is_found(text: str, found: int) -> None:
    assert len(claims(text)) == found
