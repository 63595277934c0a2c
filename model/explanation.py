"""Where a detection's attention looks: sampled points and their weights; without torch.

`model.explain` computes it, `service.images.explanation` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Stage = Literal["encoder", "decoder"]
_WEIGHT_DECIMALS, _PIXEL_DECIMALS = 6, 2


@dataclass(frozen=True)
class SampledPoints:
    """The points that one query samples in one layer, on all levels.

    M heads, L levels, P points per head and level.

    Attributes:
        stage: which stack the layer is in.
        layer: counted from 1.
        num_layers: of the stack.
        key_aware: weights are from the sampled keys (KDA); otherwise from the query alone.
        reference: what the points are placed around, in pixels of the original image: the centre
            of a token (x, y), or a box (xmin, ymin, xmax, ymax).
        xy: float64 [M, L, P, 2], pixels of the original image. Points outside, which sample zeros,
            are at most one width or height away from it.
        weights: float64 [M, L, P], 0..1; those of a head sum to 1.
    """

    stage: Stage
    layer: int
    num_layers: int
    key_aware: bool
    reference: tuple[float, ...]
    xy: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """[L], the mean weight of each level over the heads; they sum to 1."""
        shares: npt.NDArray[np.float64] = self.weights.sum(axis=2).mean(axis=0)
        return shares

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; one object per point."""
        heads, levels, points = self.weights.shape
        rows = [
            {
                "head": head,
                "level": level,
                "x": round(float(self.xy[head, level, point, 0]), _PIXEL_DECIMALS),
                "y": round(float(self.xy[head, level, point, 1]), _PIXEL_DECIMALS),
                "weight": round(float(self.weights[head, level, point]), _WEIGHT_DECIMALS),
            }
            for head in range(heads)
            for level in range(levels)
            for point in range(points)
        ]
        return {
            "stage": self.stage,
            "layer": self.layer,
            "num_layers": self.num_layers,
            "key_aware": self.key_aware,
            "reference": [round(value, _PIXEL_DECIMALS) for value in self.reference],
            "level_shares": [round(float(share), _WEIGHT_DECIMALS) for share in self.shares],
            "points": rows,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SampledPoints:
        """Rebuilds them from `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: for anything that `to_dict` does not return.
        """
        rows = values["points"]
        heads, levels = (max(row[key] for row in rows) + 1 for key in ("head", "level"))
        shape = (heads, levels, len(rows) // (heads * levels))
        xy = np.array([(row["x"], row["y"]) for row in rows], dtype=np.float64)
        weights = np.array([row["weight"] for row in rows], dtype=np.float64)
        return cls(
            stage=values["stage"],
            layer=values["layer"],
            num_layers=values["num_layers"],
            key_aware=values["key_aware"],
            reference=tuple(values["reference"]),
            xy=xy.reshape(*shape, 2),
            weights=weights.reshape(shape),
        )


@dataclass(frozen=True)
class Explanation:
    """Why a query detects: what it samples, and what the token that it began as had sampled.

    Attributes:
        label: class name.
        score: 0..1.
        box_xyxy: in pixels of the original image.
        query: its number; queries are in the order of their tokens' scores.
        token_level: the level of the encoder's token that the query was selected from.
        strides: of the levels, pixels of the resized image.
        decoder: the query's cross-attention.
        encoder: the self-attention of the token.
    """

    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    query: int
    token_level: int
    strides: tuple[int, ...]
    decoder: SampledPoints
    encoder: SampledPoints

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        corners = zip(("xmin", "ymin", "xmax", "ymax"), self.box_xyxy, strict=True)
        return {
            "label": self.label,
            "score": round(self.score, 4),
            "box": {name: round(value, _PIXEL_DECIMALS) for name, value in corners},
            "query": self.query,
            "token_level": self.token_level,
            "strides": list(self.strides),
            "decoder": self.decoder.to_dict(),
            "encoder": self.encoder.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Explanation:
        """Rebuilds it from `to_dict`; for errors see `SampledPoints.from_dict`."""
        box = values["box"]
        return cls(
            label=values["label"],
            score=values["score"],
            box_xyxy=(box["xmin"], box["ymin"], box["xmax"], box["ymax"]),
            query=values["query"],
            token_level=values["token_level"],
            strides=tuple(values["strides"]),
            decoder=SampledPoints.from_dict(values["decoder"]),
            encoder=SampledPoints.from_dict(values["encoder"]),
        )
