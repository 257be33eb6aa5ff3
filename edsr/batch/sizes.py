"""How large a result is to be."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OutputSize:
    """The size asked for: `outscale` times the image's, or `width` and/or `height` in pixels; nothing: the network's.

    One side alone keeps the image's proportions; both are taken as they are.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None

    def __bool__(self) -> bool:
        """Whether a size is asked for."""
        return bool(self.outscale or self.width or self.height)

    def resolve(self, width: int, height: int) -> tuple[int, int]:
        """The result's (width, height) for an image of width x height, each 1 or more."""
        if self.outscale:
            sides = width * self.outscale, height * self.outscale
        else:
            across = self.width / width if self.width else None
            down = self.height / height if self.height else across
            across = across if across is not None else down
            if across is None or down is None:
                raise ValueError("no size is asked for")
            sides = width * across, height * down
        return max(1, round(sides[0])), max(1, round(sides[1]))

    def tag(self, scale: int) -> str:
        """What the result's name ends in: x2.5, w3000, h2000, 3000x2000; with no size asked for, x and the scale."""
        if self.width and self.height:
            return f"{self.width}x{self.height}"
        if self.width or self.height:
            return f"w{self.width}" if self.width else f"h{self.height}"
        return f"x{self.outscale or scale:g}"


def scale_for(wanted: tuple[int, int], width: int, height: int, scales: Sequence[int]) -> int | None:
    """The smallest of `scales` that makes width x height at least as large as `wanted`; None if none does."""
    return next((s for s in sorted(scales) if s * width >= wanted[0] and s * height >= wanted[1]), None)
