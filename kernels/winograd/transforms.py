"""The three matrices of a Winograd convolution, derived from its interpolation points.

In one dimension m outputs of a filter of r taps are y = Aᵀ((G g) ∘ (Bᵀ d)) from n = m + r - 1 inputs d: n
multiplications instead of m·r. In two dimensions Y = Aᵀ((G g Gᵀ) ∘ (Bᵀ d B))A: n² instead of m²·r² (Winograd 1980;
Lavin and Gray, CVPR 2016). The Toom-Cook construction treats d and g as polynomials and evaluates them at n - 1 points
a_j and at infinity. With N_j = prod over l ≠ j of (a_j - a_l):

    Aᵀ[i, j] = a_j^i     G[j, k] = a_j^k / N_j     Bᵀ[j] = coefficients of prod over l ≠ j of (x - a_l)

and for infinity the last unit vectors of Aᵀ and G, and the coefficients of the product over all l.

The points decide how much rounding errors grow. With 0, ±1/c, ±c, pairs of rows share their even and odd parts, and the
entries of all three matrices stay near one (Barabasz et al., TOMS 2020; Alam et al., TECS 2022). With c = √2 the
squares of the points are exact, and no other c has an error smaller by more than a twentieth; the error with
0, ±1, ±2 is twice as large (docs/log.md).
"""

import math
from collections.abc import Sequence

import numpy as np

Points = tuple[float, ...]
POINTS: Points = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2.0), -math.sqrt(2.0))
TILE = len(POINTS) + 1  # n, side of a tile of input: 6


def matrices(outputs: int, taps: int, points: Points = POINTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of a convolution in one dimension.

    Args:
        outputs: m.
        taps: r.
        points: the n - 1 finite interpolation points.

    Returns:
        Aᵀ [m, n], G [n, r] and Bᵀ [n, n] in fp64.

    Raises:
        ValueError: m + r - 1 is not n.
    """
    n = len(points) + 1
    if outputs + taps - 1 != n:
        raise ValueError(f"{len(points)} points are for {n} inputs, not for {outputs} outputs of {taps} taps")
    a = np.array(points)
    at, g, bt = np.zeros((outputs, n)), np.zeros((n, taps)), np.zeros((n, n))
    for j in range(n - 1):
        others = np.delete(a, j)
        at[:, j] = a[j] ** np.arange(outputs)
        g[j] = a[j] ** np.arange(taps) / np.prod(a[j] - others)
        bt[j, : n - 1] = _coefficients(others)
    at[-1, -1] = g[-1, -1] = 1.0
    bt[-1] = _coefficients(a)
    return at, g, bt


def _coefficients(roots: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coefficients of prod (x - root), lowest power first. Rounding errors about zero are removed."""
    coefficients = np.poly(roots)[::-1]
    return np.where(np.abs(coefficients) < 1e-12, 0.0, coefficients)
