"""Compiles the CUDA C++ of `csrc/` for one GPU with NVIDIA's run-time compiler; caches the result.

A variant (types and sizes) -> macros -> NVRTC -> machine code in the user's cache, unless
`cuda_ahead.py` wrote it into the package when a container image was built. Users need no CUDA
toolkit: torch's CUDA builds contain NVRTC and, through `cuda-bindings`, its Python interface.
A file's name has a hash of sources, macros, target and compiler; the file begins with a hash of the
rest, so a truncated or damaged one is compiled again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import torch

from model.native.library import BuildError, cache_directory
from model.native.prebuilt import DIRECTORY

_SOURCES = Path(__file__).parent / "csrc"
_FORWARD, _BACKWARD = "deform_attn.cu", "deform_attn_backward.cu"
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
_DIGEST_BYTES = hashlib.sha256().digest_size
_BOX_SIZE = 4  # numbers of a reference that is a box

Kind = Literal["plain", "shared_keys", "separate_keys"]
TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat16Bits"}

# Warps of a block. 12: a tile of queries (csrc/tiles.cuh).
_WARPS, _FEWER_WARPS, _BACKWARD_WARPS = 12, 8, 4

# How many blocks must fit on a multiprocessor: as many as leave each thread the registers that it
# needs, measured with NVRTC 13.0; the tests check that nothing spills. Two of 12 warps leave 80
# registers, two of 8 warps 128.
_BLOCKS = 2
_BACKWARD_BLOCKS: dict[tuple[str, Kind], int] = {
    ("Half", "plain"): 5,
    ("Half", "shared_keys"): 4,
    ("Half", "separate_keys"): 4,
    ("Bfloat16Bits", "plain"): 5,
    ("Bfloat16Bits", "shared_keys"): 4,
    ("Bfloat16Bits", "separate_keys"): 4,
    ("float", "plain"): 4,
    ("float", "shared_keys"): 4,
    ("float", "separate_keys"): 3,
}


class Kernel(Protocol):
    """A kernel that can be compiled: hashable, with a name for logs."""

    @property
    def program(self) -> str:
        """The file in csrc/."""

    @property
    def entry(self) -> bytes:
        """The function in it."""

    @property
    def loss(self) -> str:
        """For logs: what plain PyTorch costs instead."""

    def definitions(self) -> tuple[str, ...]:
        """Compiler options that define the macros of the program."""


@dataclass(frozen=True)
class Variant:
    """What the compiler gets as macros; one kernel of attention per variant."""

    value_type: torch.dtype  # of keys, values, query, logits and output
    offset_type: torch.dtype
    kind: Kind
    channels: int  # of a head
    heads: int
    levels: int
    points: int
    reference_size: int
    offset_levels: int
    splits: int = 1  # groups of lanes among which the points of a row are split
    backward: bool = False
    deterministic: bool = False  # only of the backward pass: sums are integers

    entry = b"lite_detr_deform_attn"
    loss = "slower"

    @property
    def program(self) -> str:
        """The file in csrc/."""
        return _BACKWARD if self.backward else _FORWARD

    @property
    def warps(self) -> int:
        """Of a block."""
        if self.backward:
            return _BACKWARD_WARPS
        wide = self.kind == "separate_keys" and (
            self.value_type == torch.bfloat16 or self.splits > 1
        )
        return _FEWER_WARPS if wide else _WARPS

    @property
    def blocks(self) -> int:
        """That must fit on a multiprocessor at the same time."""
        if self.backward and not self.deterministic:
            return _BACKWARD_BLOCKS[TYPES[self.value_type], self.kind]
        # float32 keys of their own take the registers of two blocks.
        widest = self.kind == "separate_keys" and self.value_type == torch.float32
        return 1 if widest and self.splits == 1 else _BLOCKS

    def definitions(self) -> tuple[str, ...]:
        """Compiler options that define the macros of the program."""
        value_type = TYPES[self.value_type]
        macros = {
            "VALUE_TYPE": value_type,
            "OFFSET_TYPE": TYPES[self.offset_type],
            "KIND": self.kind,
            "CHANNELS": self.channels,
            "HEADS": self.heads,
            "LEVELS": self.levels,
            "POINTS": self.points,
            "REFERENCE_SIZE": self.reference_size,
            "OFFSET_LEVELS": self.offset_levels,
            "WARPS": self.warps,
            "BLOCKS": self.blocks,
        }
        if self.backward:
            macros["SUM_TYPE"] = "long long" if self.deterministic else "float"
        else:
            macros["SPLITS"] = self.splits
        return tuple(f"-D{name}={value}" for name, value in macros.items())

    def __str__(self) -> str:
        """For logs: "shared_keys float16, 8 heads of 32 channels, 4 levels of 4 points"."""
        types = str(self.value_type).removeprefix("torch.")
        if self.offset_type != self.value_type:
            types += f" with {str(self.offset_type).removeprefix('torch.')} offsets"
        sizes = f"{self.heads} heads of {self.channels} channels, {self.levels} levels of"
        boxes = " around boxes" if self.reference_size == _BOX_SIZE else ""
        backward = ", backward" if self.backward else ""
        ways = f"{', deterministic' * self.deterministic}{', split points' * (self.splits > 1)}"
        return f"{self.kind} {types}, {sizes} {self.points} points{boxes}{backward}{ways}"


def machine_code(
    variant: Kernel,
    capability: tuple[int, int],
    cache_dir: Path | None = None,
    *,
    cache_required: bool = False,
) -> bytes:
    """The kernel for a GPU of that compute capability, as the driver loads it.

    Args:
        variant: which kernel.
        capability: (major, minor), such as (9, 0).
        cache_dir: of the results; default: `.cache/lite-detr/ops` in the user's home.
        cache_required: fail if the result cannot be written there. Otherwise a warning says so,
            and each process compiles for itself.

    Raises:
        BuildError: without NVRTC, for a GPU older than any that it knows, or for a program that it
            refuses; with `cache_required` also if the result cannot be written.
    """
    compiler = _compiler()
    options = (*_OPTIONS, _target(compiler, capability), *variant.definitions())
    sources = {path.name: path.read_bytes() for path in sorted(_SOURCES.glob("*.cu*"))}
    stem = variant.program.removesuffix(".cu")
    name = f"{stem}-{_fingerprint(compiler, options, sources)}.cubin"
    ahead = _read(DIRECTORY / name)
    if ahead is not None:
        return ahead
    code = _cached(name, cache_dir)
    if code is None:
        code = _compile(compiler, variant.program, options, sources)
        try:
            _write(cache_directory(cache_dir) / name, code)
        except BuildError as error:
            if cache_required:
                raise
            # Python shows equal warnings of one line once.
            text = f"compiled GPU kernels are not kept, so each process compiles them: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    return code


def _cached(name: str, cache_dir: Path | None) -> bytes | None:
    try:
        return _read(cache_directory(cache_dir) / name)
    except BuildError:  # of a folder that cannot be created
        return None


def _compiler() -> ModuleType:
    """Raises BuildError where NVRTC or its Python interface is missing."""
    try:
        from cuda.bindings import nvrtc  # noqa: PLC0415 - only installed with a CUDA build of torch

        nvrtc.nvrtcVersion()  # loads the library
    except Exception as error:  # of a broken installation
        raise BuildError(f"NVIDIA's run-time compiler (NVRTC) is not usable: {error}") from error
    module: ModuleType = nvrtc
    return module


def _target(compiler: ModuleType, capability: tuple[int, int]) -> str:
    """Machine code for the GPU, or PTX of the newest older one, which the driver compiles."""
    wanted = 10 * capability[0] + capability[1]
    (architectures,) = _checked(compiler, compiler.nvrtcGetSupportedArchs())
    if wanted in architectures:
        return f"--gpu-architecture=sm_{wanted}"
    older = [architecture for architecture in architectures if architecture < wanted]
    if not older:
        raise BuildError(f"NVRTC knows no GPU of compute capability {capability}")
    return f"--gpu-architecture=compute_{max(older)}"


def _fingerprint(compiler: ModuleType, options: tuple[str, ...], sources: dict[str, bytes]) -> str:
    # As numbers: versions of the bindings may print a status in other ways.
    version = tuple(map(int, compiler.nvrtcVersion()))
    digest = hashlib.sha256(repr((version, options)).encode())
    for name, text in sources.items():
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    """The code in that file; None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Writes atomically: another process sees the whole file or none."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as workplace:
            built = Path(workplace) / path.name
            built.write_bytes(hashlib.sha256(code).digest() + code)
            os.replace(built, path)
    except OSError as error:
        raise BuildError(f"the compiled kernels cannot be written: {error}") from error


def _compile(
    compiler: ModuleType, program_name: str, options: tuple[str, ...], sources: dict[str, bytes]
) -> bytes:
    headers = {name: text for name, text in sources.items() if name != program_name}
    (program,) = _checked(
        compiler,
        compiler.nvrtcCreateProgram(
            sources[program_name],
            program_name.encode(),
            len(headers),
            list(headers.values()),
            [name.encode() for name in headers],
        ),
    )
    try:
        encoded = [option.encode() for option in options]
        (result,) = compiler.nvrtcCompileProgram(program, len(encoded), encoded)
        if result != compiler.nvrtcResult.NVRTC_SUCCESS:
            log = _text(compiler, program, "ProgramLog")
            raise BuildError(f"NVRTC refused the kernel: {log[:2000].decode(errors='replace')}")
        kind = "CUBIN" if any("=sm_" in option for option in options) else "PTX"
        return _text(compiler, program, kind)
    finally:
        compiler.nvrtcDestroyProgram(program)


def _text(compiler: ModuleType, program: object, what: str) -> bytes:
    (size,) = _checked(compiler, getattr(compiler, f"nvrtcGet{what}Size")(program))
    # NVRTC writes into the object itself, and Python shares bytes objects of length 1.
    buffer = bytes(int(size) + 16)
    _checked(compiler, getattr(compiler, f"nvrtcGet{what}")(program, buffer))
    text = buffer[: int(size)]
    return text.rstrip(b"\0") if what == "ProgramLog" else text


def _checked(compiler: ModuleType, returned: tuple[Any, ...]) -> tuple[Any, ...]:
    result, *values = returned
    if result != compiler.nvrtcResult.NVRTC_SUCCESS:
        raise BuildError(f"NVRTC failed: {result}")
    return tuple(values)
