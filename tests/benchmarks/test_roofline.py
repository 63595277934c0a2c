"""What the GPU moves and launches for an image, counted on shapes: it may not grow.

A change that lowers a count lowers its limit here.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import roofline
from benchmarks.gpu.roofline import Counts, as_on_a_gpu, count
from model import VARIANTS
from model.network import cuda_fusion

R50, DEFAULT = "lite-dino-r50-h3l1-2p1x3", "lite-dino-efficientnet-lite0"
R50_BUCKET, DEFAULT_BUCKET = (832, 1344), (384, 512)  # of photos of 800 x 1333 and 3 x 4
BATCH = 8


@pytest.fixture(scope="module")
def r50() -> Counts:
    return count(VARIANTS[R50], BATCH, R50_BUCKET)


@pytest.mark.slow
def test_the_published_model(r50: Counts) -> None:
    assert r50.bytes_per_image <= 3.91e9
    assert r50.kernels <= 769
    assert BATCH / r50.seconds >= 630  # images per second, at most


def test_the_default_model() -> None:
    counts = count(VARIANTS[DEFAULT], BATCH, DEFAULT_BUCKET)
    assert counts.bytes_per_image <= 0.402e9
    assert counts.kernels <= 668


def test_float32_which_is_the_default() -> None:
    counts = count(VARIANTS[DEFAULT], BATCH, DEFAULT_BUCKET, torch.float32)
    assert counts.bytes_per_image <= 0.832e9
    assert counts.kernels <= 663
    convolutions = counts.by_operator["conv2d (float32)"]
    assert convolutions.operations >= BATCH * 2.9e9  # 3 GFLOP an image


def test_fused_epilogues_save_a_third_of_the_convolutions_bytes(r50: Counts) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_fusion._State, "enabled", frozenset())
        in_passes = count(VARIANTS[R50], BATCH, R50_BUCKET)
    assert in_passes.bytes_per_image - r50.bytes_per_image >= 1.3e9
    assert in_passes.kernels - r50.kernels >= 50


def test_no_pass_zeroes_the_padding_of_values(r50: Counts) -> None:
    assert not [name for name in r50.by_operator if name.startswith("masked_fill_")]


def test_every_residual_of_encoder_and_decoder_is_added_while_normalising(r50: Counts) -> None:
    fused = r50.by_operator["add_layer_norm"]
    # Encoder: after 6 attentions and 9 feed-forward networks; decoder: 3 in each layer.
    assert fused.kernels == 6 + 9 + 6 * 3
    tokens = 104 * 168 + 52 * 84 + 26 * 42 + 13 * 21
    high = tokens - 104 * 168
    rows = BATCH * (2 * 3 * tokens + 2 * 3 * high + 18 * 900)
    read_once = (BATCH - 1) * 900  # the queries begin with the same content in every image
    assert fused.bytes == (3 * rows - read_once + 2 * fused.kernels) * 256 * 2


def test_every_kernel_of_the_attention_is_counted(r50: Counts) -> None:
    attention = r50.by_operator["key_aware_deform_attn"]
    assert attention.kernels == 6 + 6  # encoder and decoder layers
    tokens = 104 * 168 + 52 * 84 + 26 * 42 + 13 * 21
    high = tokens - 104 * 168
    queries = BATCH * (3 * tokens + 3 * high + 6 * 900)
    assert attention.seconds >= 40e-6 * queries / 22_223
    assert r50.by_operator["attention among queries"].kernels == 6


def test_bytes_of_simple_operators() -> None:
    counts = Counts(1, roofline.H200)
    x = torch.empty(10, 20, dtype=torch.float16, device="meta")
    row = torch.empty(20, dtype=torch.float16, device="meta").expand(10, 20)
    with torch.inference_mode(), roofline.CountKernels(counts):
        x + row  # 200 read, 20 of the expanded row, 200 written
        x.view(20, 10).t()
        x.copy_(row)
        x.contiguous()
    by_operator = {name: (cost.kernels, cost.bytes) for name, cost in counts.by_operator.items()}
    assert by_operator == {"add": (1, 2 * 420), "copy_": (1, 2 * 220)}


def test_the_bias_of_a_depthwise_convolution_is_a_pass_of_its_own() -> None:
    x = torch.empty(2, 16, 8, 8, dtype=torch.float16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.empty(16, 1, 3, 3, dtype=torch.float16, device="meta")
    bias = torch.empty(16, dtype=torch.float16, device="meta")
    kernels = []
    for given in (None, bias):
        counts = Counts(1, roofline.H200)
        with torch.inference_mode(), roofline.CountKernels(counts):
            torch.nn.functional.conv2d(x, weight, given, padding=1, groups=16)
        kernels.append(counts.kernels)
    assert kernels == [1, 2]


def test_float32_convolutions_are_not_fused() -> None:
    with as_on_a_gpu():
        assert not cuda_fusion.can_convolve(torch.device("meta"), torch.float32)
        assert cuda_fusion.can_convolve(torch.device("meta"), torch.float16)
