"""What all kernels share: how tiles of a feature map are found, transformed, and laid out in Winograd's domain.

Feature maps are NHWC: pixel (row, column) of a map with C channels begins at row · row stride + column · C. A tile is
TILE x TILE pixels of input and m x m of output. Tiles form groups of `Shape.tiles`, and the channels of each group are
divided into vectors of `Shape.lanes`:

    [group][vector of C][36][tile][lane]

so every offset inside a group is a constant for the compiler, whatever the number of channels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .ir_builder import F32, FLOAT_BYTES, I64, PTR, VOID, IRBuilder, Value
from .transforms import TILE, matrices

AREA = TILE * TILE
CACHE_LINE_FLOATS = 64 // FLOAT_BYTES
SUM_BLOCK = 16  # channels in each partial sum; numbers of channels are multiples of it


class Shape(NamedTuple):
    """What kernels are compiled for.

    Attributes:
        lanes: floats in a vector register, 4, 8 or 16.
        tiles: rows of the register block of matrix products, with a partial sum of 16 channels and a total per entry.
        vectors: columns of the register block.
    """

    lanes: int
    tiles: int
    vectors: int


class Tiles:
    """A module of LLVM IR with the functions that every kernel calls."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.vector = ir.VectorType(F32, shape.lanes)
        self.module = ir.Module(name="winograd")
        self.prefetch = self._prefetch()
        self.copy_padded = self._copy_padded()
        self.transform_input = self._transform_input()

    def function(self, name: str, arguments: str, internal: bool = True) -> tuple[ir.Function, IRBuilder]:
        """A function without result, and the builder of its body.

        Args:
            name: of the function.
            arguments: names with spaces between them: addresses if they end in `_ptr`, else 64-bit integers.
            internal: whether only this module calls it.
        """
        names = arguments.split()
        kinds = [PTR if n.endswith("_ptr") else I64 for n in names]
        function = ir.Function(self.module, ir.FunctionType(VOID, kinds), name)
        # Nothing is thrown. Tables for that would also lie where LLVM's linker, on Windows, now and then cannot reach
        # them, by which it ends the process.
        function.attributes.add("nounwind")
        if internal:
            function.linkage = "internal"
            function.attributes.add("noinline")
        for argument, n in zip(function.args, names, strict=True):
            argument.name = n
        return function, IRBuilder(function.append_basic_block("entry"), self.vector)

    def _prefetch(self) -> ir.Function:
        """Starts to load so many vectors into the L2 cache, without waiting. Any address is harmless."""
        function, b = self.function("prefetch", "x_ptr vectors")
        x, vectors = function.args
        i32 = ir.IntType(32)
        prefetch = ir.Function(self.module, ir.FunctionType(VOID, [PTR, i32, i32, i32]), "llvm.prefetch.p0")
        read, into_l2, data = (ir.Constant(i32, value) for value in (0, 2, 1))
        with b.loop(b.cdiv(b.mul(vectors, b.i(self.shape.lanes)), b.i(CACHE_LINE_FLOATS)), "line") as line:
            b.call(prefetch, [b.at(x, b.mul(line, b.i(CACHE_LINE_FLOATS))), read, into_l2, data])
        b.ret_void()
        return function

    def _transform_input(self) -> ir.Function:
        """The input transform of one tile, V = Bᵀ d B for every vector of channels."""
        s = self.shape
        function, b = self.function("transform_input", "x_ptr row column inputs v_ptr")
        x, row, column, inputs, v = function.args
        bt = matrices(4, 3)[2]  # Bᵀ is the same for 5x5
        with b.loop(inputs, "vector") as c:
            start = b.at(x, b.mul(c, b.i(s.lanes)))
            rows = [b.at(start, b.mul(row, b.i(i))) for i in range(TILE)]
            half = []  # columns of Bᵀ d
            for k in range(TILE):
                d = [b.get(b.at(rows[i], b.mul(column, b.i(k)))) for i in range(TILE)]
                half.append(self.apply_matrix(b, bt, d))
            target = b.at(v, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            for i in range(TILE):
                for k, value in enumerate(self.apply_matrix(b, bt, [half[k][i] for k in range(TILE)])):
                    b.put(value, b.at(target, (i * TILE + k) * s.tiles * s.lanes))
        b.ret_void()
        return function

    def _copy_padded(self) -> ir.Function:
        """Copies side x side pixels from (top, left) of a map of height x width, with zeros for pixels outside it."""
        function, b = self.function("copy_padded", "x_ptr row top left height width vectors side to_ptr")
        x, row, top, left, height, width, vectors, side, to = function.args
        lanes = b.i(self.shape.lanes)
        pixel = b.mul(vectors, lanes)
        with b.loop(side, "row") as i, b.loop(side, "column") as k:
            y, column = b.add(top, i), b.add(left, k)
            # Unsigned comparison: above or to the left of the map, numbers are negative, and so appear huge.
            inside = b.and_(b.icmp_unsigned("<", y, height), b.icmp_unsigned("<", column, width))
            target = b.at(to, b.mul(b.add(b.mul(i, side), k), pixel))
            with b.if_else(inside) as (then, otherwise):
                with then:
                    source = b.at(x, b.add(b.mul(y, row), b.mul(column, pixel)))
                    with b.loop(vectors, "vector") as c:
                        b.put(b.get(b.at(source, b.mul(c, lanes))), b.at(target, b.mul(c, lanes)))
                with otherwise, b.loop(vectors, "vector") as c:
                    b.put(ir.Constant(self.vector, [0.0] * self.shape.lanes), b.at(target, b.mul(c, lanes)))
        b.ret_void()
        return function

    def window(
        self,
        b: IRBuilder,
        map_: Value,
        row: Value,
        corner: tuple[Value, Value],
        size: tuple[Value, Value],
        vectors: Value,
        side: int,
        edge: Value,
    ) -> tuple[Value, Value]:
        """A square of pixels of a map: in place if all lie in it, else a copy padded with zeros.

        Args:
            b: builder.
            map_: address of the map.
            row: its row stride.
            corner: row and column of the square's first pixel.
            size: rows and columns of the map.
            vectors: of channels.
            side: of the square, in pixels.
            edge: address of memory for a copy.

        Returns:
            Address and row stride of the square.
        """
        (top, left), (height, width) = corner, size
        pixel = b.mul(vectors, b.i(self.shape.lanes))
        fits = b.and_(b.within(top, side, height), b.within(left, side, width))
        with b.if_then(b.not_(fits)):
            b.call(self.copy_padded, [map_, row, top, left, height, width, vectors, b.i(side), edge])
        source = b.at(map_, b.add(b.mul(top, row), b.mul(left, pixel)))
        return b.select(fits, source, edge), b.select(fits, row, b.mul(pixel, b.i(side)))

    def tile_address(self, b: IRBuilder, start: Value, group: Value, tile: Value) -> Value:
        """The address of a tile's first vector in V, M or W. start: of the matrix. group: floats per group."""
        tiles, lanes = b.i(self.shape.tiles), b.i(self.shape.lanes)
        start = b.at(start, b.mul(b.udiv(tile, tiles), group))
        return b.at(start, b.mul(b.urem(tile, tiles), lanes))

    def strips(self, b: IRBuilder, full: Value, rest: Value) -> Iterator[tuple[int, Value]]:
        """Loops over strips of channels, one loop for each width that a strip can have.

        Args:
            b: builder.
            full: number of strips of `Shape.vectors` vectors.
            rest: vectors of the last, narrower strip, or 0.

        Yields:
            The width in vectors, and the first channel of a strip.
        """
        s = self.shape
        for vectors in range(1, s.vectors + 1):
            widest = vectors == s.vectors
            count = full if widest else b.zext(b.icmp_signed("==", rest, b.i(vectors)), I64)
            before = b.i(0) if widest else full
            with b.if_then(b.icmp_signed(">", count, b.i(0))), b.loop(count, "strip") as strip:
                yield vectors, b.mul(b.add(before, strip), b.i(s.vectors * s.lanes))

    def apply_matrix(self, b: IRBuilder, matrix: np.ndarray, x: Sequence[Value]) -> list[Value]:
        """matrix @ x in few operations: a pair of points ±a needs its sum and difference only once."""
        pairs = _sign_pairs(matrix.T)
        if pairs:  # pairs of columns: combine the two inputs first
            matrix, x = matrix.copy(), list(x)
            for i, j in pairs:
                x[i], x[j] = b.fadd(x[i], x[j]), b.fsub(x[i], x[j])
                even = np.isclose(matrix[:, i], matrix[:, j])
                matrix[:, i], matrix[:, j] = np.where(even, matrix[:, i], 0), np.where(even, 0, matrix[:, i])
            return [self._dot(b, row, x) for row in matrix]
        pairs = _sign_pairs(matrix)
        results: dict[int, Value] = {}
        for i, j in pairs:  # pairs of rows: even part ± odd part
            same = np.isclose(matrix[i], matrix[j])
            even = self._dot(b, np.where(same, matrix[i], 0), x)
            odd = np.where(same, 0, matrix[i])
            factor = odd[np.flatnonzero(odd)[-1]]
            part = self._dot(b, odd / factor, x)
            results[i], results[j] = (b.fma(b.constant(f, part.type), part, even) for f in (factor, -factor))
        return [results[i] if i in results else self._dot(b, row, x) for i, row in enumerate(matrix)]

    def _dot(self, b: IRBuilder, row: np.ndarray, x: Sequence[Value]) -> Value:
        """The dot product of a row and x; terms of factor 1, which need no multiplication, come first."""
        terms = sorted(np.flatnonzero(row), key=lambda i: row[i] != 1)
        first, *others = terms
        total = x[first] if row[first] == 1 else b.fmul(b.constant(row[first], x[first].type), x[first])
        for i in others:
            if row[i] == 1:
                total = b.fadd(total, x[i])
            else:
                total = b.fma(b.constant(row[i], x[i].type), x[i], total)
        return total


class TileGrid:
    """The tiles of a batch of images, m x m pixels of output each, numbered row by row and image by image."""

    def __init__(self, b: IRBuilder, height: Value, width: Value, images: Value, m: int):
        self._b, self._m = b, m
        self._across = b.cdiv(width, b.i(m))
        down = b.cdiv(height, b.i(m))
        self._per_image = b.mul(self._across, down)
        self.tiles = b.mul(self._per_image, images)

    def corner(self, tile: Value) -> tuple[Value, Value, Value]:
        """A tile's image, and the row and column of its first pixel in the output."""
        b = self._b
        image, place = b.udiv(tile, self._per_image), b.urem(tile, self._per_image)
        return image, b.mul(b.udiv(place, self._across), b.i(self._m)), b.mul(b.urem(place, self._across), b.i(self._m))


def load_field(b: IRBuilder, task: Value, name: str, fields: Sequence[str], kind: ir.Type = I64) -> Value:
    """Loads a field of a kernel's task."""
    return b.load(b.gep(task, [b.i(fields.index(name))], source_etype=I64), name=name, typ=kind)


def _sign_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows that differ only in signs, in some of their entries but not in all."""
    pairs = []
    for i in range(len(matrix)):
        for j in range(i + 1, len(matrix)):
            a, b = matrix[i], matrix[j]
            signs = np.sign(a * b)
            if np.allclose(abs(a), abs(b)) and 1 in signs and -1 in signs:
                pairs.append((i, j))
    return pairs
