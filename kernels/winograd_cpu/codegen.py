"""LLVM IR of the convolution kernels; `python -m kernels.winograd_cpu.native` prints what is compiled here.

Maps are NHWC: pixel (row, column) of a map of C channels begins at row · row stride + column · C. A tile is TILE x TILE
pixels of input and m x m of output. Tiles are taken in groups of `Shape.tiles`, the rows of one register block of the
matrix product, and in each group channels are cut into vectors of `Shape.lanes`:

    V [group][vector of Ci][36][tile][lane]            tiles, transformed
    U [strip of Co][36][channel of Ci][vector][lane]   weights, transformed; a strip is `Shape.vectors` vectors of Co,
                                                       the last may have fewer
    M [group][vector of Co][36][tile][lane]            their products

so that every distance inside a group is known to the compiler, whatever the numbers of channels. A thread takes one
block of groups after the other, as many as keep V and M in its L2 cache, and takes a block from input to output.

Maps are larger than the caches, and a core that waits for them computes nothing. So it asks for what it will read next
while it multiplies, and what it writes goes past the caches, which would have to read it first.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from kernels.winograd_cpu.builder import F32, FLOAT_BYTES, I64, PTR, VOID, Builder, Value
from kernels.winograd_cpu.transforms import TILE, matrices

AREA = TILE * TILE
KERNELS = {"conv3x3": (4, 3), "conv5x5": (2, 5)}  # name -> (m outputs, r taps)

LINE = 64 // FLOAT_BYTES  # floats of a cache line
BLOCK = 16  # channels that are summed by themselves; numbers of channels are multiples of it


class Shape(NamedTuple):
    """What a kernel is compiled for. lanes: floats in a vector register, 4, 8 or 16. tiles, vectors: the register
    block of the matrix products, tiles x vectors sums of 16 channels and as many of those sums' sums."""

    lanes: int
    tiles: int
    vectors: int


TASK = (  # fields of what a kernel is called with, 64 bits each
    "x",  # address of the input's first float
    "weight",  # of U
    "bias",
    "y",
    "skip",  # 0 to go without
    "next_block",  # the next block that nobody has taken
    "height",  # rows of the input
    "width",
    "x_row",  # floats from one row to the next
    "y_height",
    "y_row",
    "skip_row",
    "padding",  # rows of zeros above the input
    "past_caches",  # whether the output goes past the caches; if so, y and y_row are multiples of a cache line
    "inputs",  # vectors of Ci
    "outputs",  # vectors of Co
    "groups",  # of tiles in a block
    "floor",  # float: results of the convolution below it become it; ReLU's 0, or minus infinity
    "scale",  # float: factor on the convolution before the skip is added
)


def source(shape: Shape) -> str:
    """LLVM IR of all kernels: name(task, scratch), see `TASK`. scratch: `scratch_floats` floats of the thread's own."""
    return str(_Module(shape).module)


def scratch_floats(shape: Shape, inputs: int, outputs: int, groups: int) -> int:
    """How many floats a thread's scratch has, for so many channels in and out and groups of a block."""
    return AREA * (groups * shape.tiles * (inputs + outputs) + inputs + 2 * outputs)


def goes_past_caches(shape: Shape) -> bool:
    """Whether output may: if a vector is a whole cache line, else parts would be written one by one. AVX-512."""
    return shape.lanes == LINE


class _Module:
    def __init__(self, shape: Shape):
        self.shape = shape
        self.vector = ir.VectorType(F32, shape.lanes)
        self.module = ir.Module(name="winograd")
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        # Fused where the CPU can, a multiplication and an addition where it cannot.
        self.fmuladd = ir.Function(self.module, kind, f"llvm.fmuladd.v{shape.lanes}f32")
        self.store_fence = ir.Function(self.module, ir.FunctionType(VOID, []), "llvm.x86.sse.sfence")
        self.ask_for = self._ask_for()
        self.copy_in = self._copy_in()
        self.multiply = {vectors: self._multiply(vectors) for vectors in range(1, shape.vectors + 1)}
        self.transform_input = self._transform_input()
        for name, (m, r) in KERNELS.items():
            past = (False, True) if goes_past_caches(shape) else (False,)
            kinds = itertools.product((False, True), past)
            outputs = {kind: self._transform_output(name, m, r, *kind) for kind in kinds}
            self._kernel(name, m, r, outputs)

    def _function(self, name: str, arguments: str, internal: bool = True) -> tuple[ir.Function, Builder]:
        """A function of 64-bit whole numbers and, where a name ends in `_ptr`, addresses; and what writes its body."""
        names = arguments.split()
        kinds = [PTR if n.endswith("_ptr") else I64 for n in names]
        function = ir.Function(self.module, ir.FunctionType(VOID, kinds), name)
        if internal:
            function.linkage = "internal"
            function.attributes.add("noinline")
        for argument, n in zip(function.args, names, strict=True):
            argument.name = n
        return function, Builder(function.append_basic_block("entry"), self.vector)

    def _ask_for(self) -> ir.Function:
        """Brings so many vectors from an address on into the L2 cache; nothing waits for them, wherever it points."""
        function, b = self._function("ask_for", "x_ptr vectors")
        x, vectors = function.args
        i32 = ir.IntType(32)
        prefetch = ir.Function(self.module, ir.FunctionType(VOID, [PTR, i32, i32, i32]), "llvm.prefetch.p0")
        read, into_l2, data = (ir.Constant(i32, value) for value in (0, 2, 1))
        with b.loop(b.cdiv(b.mul(vectors, b.i(self.shape.lanes)), b.i(LINE)), "line") as line:
            b.call(prefetch, [b.at(x, b.mul(line, b.i(LINE))), read, into_l2, data])
        b.ret_void()
        return function

    def _transform_input(self) -> ir.Function:
        """V of one tile: Bᵀ d B for every vector of channels."""
        s = self.shape
        function, b = self._function("transform_input", "x_ptr row column inputs v_ptr")
        x, row, column, inputs, v = function.args
        bt = matrices(*KERNELS["conv3x3"])[2]
        with b.loop(inputs, "vector") as c:
            start = b.at(x, b.mul(c, b.i(s.lanes)))
            rows = [b.at(start, b.mul(row, b.i(i))) for i in range(TILE)]
            half = []  # columns of Bᵀ d
            for k in range(TILE):
                d = [b.get(b.at(rows[i], b.mul(column, b.i(k)))) for i in range(TILE)]
                half.append(self._linear(b, bt, d))
            target = b.at(v, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            for i in range(TILE):
                for k, value in enumerate(self._linear(b, bt, [half[k][i] for k in range(TILE)])):
                    b.put(value, b.at(target, (i * TILE + k) * s.tiles * s.lanes))
        b.ret_void()
        return function

    def _multiply(self, vectors: int) -> ir.Function:
        """M = V U at one of 36 points, for a block and a strip of so many vectors: a matrix product in register blocks.

        Sums over channels are sums of sums of 16, whose rounding does not grow with the number of channels (pairwise
        summation of a kind: Higham 1993). That is what makes the convolution as accurate as a direct one.
        """
        s = self.shape
        function, b = self._function(f"multiply_{vectors}", "v_ptr u_ptr m_ptr p inputs outputs groups")
        v, u, m, p, inputs, outputs, groups = function.args
        plane = s.tiles * s.lanes
        with b.loop(groups, "group") as group:
            weights = b.at(u, b.mul(b.mul(p, inputs), b.i(s.lanes * vectors * s.lanes)))
            left = b.at(v, b.mul(b.add(b.mul(b.mul(group, inputs), b.i(AREA)), p), b.i(plane)))
            with b.summing(b.udiv(inputs, b.i(BLOCK // s.lanes)), "block", s.tiles * vectors) as (block, sums):
                a = b.at(left, b.mul(block, b.i(BLOCK * AREA * s.tiles)))
                w = b.at(weights, b.mul(block, b.i(BLOCK * vectors * s.lanes)))
                part = [b.number(0.0)] * len(sums)
                for k in range(BLOCK):
                    row = [b.get(b.at(w, (k * vectors + j) * s.lanes)) for j in range(vectors)]
                    for tile in range(s.tiles):
                        c, lane = divmod(k, s.lanes)
                        value = b.broadcast(b.at(a, c * AREA * plane + tile * s.lanes + lane))
                        for j in range(vectors):
                            i = j * s.tiles + tile
                            part[i] = b.call(self.fmuladd, [value, row[j], part[i]]) if k else b.fmul(value, row[j])
                sums[:] = [b.fadd(total, new) for total, new in zip(sums, part, strict=True)]
            target = b.at(m, b.mul(b.add(b.mul(b.mul(group, outputs), b.i(AREA)), p), b.i(plane)))
            for i, total in enumerate(sums):
                j, tile = divmod(i, s.tiles)
                b.put(total, b.at(target, j * AREA * plane + tile * s.lanes))
        b.ret_void()
        return function

    def _transform_output(self, name: str, m: int, r: int, skip: bool, past_caches: bool) -> ir.Function:
        """One tile of output: Aᵀ M A, then bias, ReLU, scale and skip."""
        s = self.shape
        arguments = "m_ptr bias_ptr task_ptr y_ptr row column" + " skip_ptr skip_row" * skip
        function, b = self._function(f"{name}_output{'_skip' * skip}{'_past' * past_caches}", arguments)
        products, bias, task, y, row, column, *rest = function.args
        at = matrices(m, r)[0]
        floor, scale = (b.splat(_field(b, task, field, F32)) for field in ("floor", "scale"))
        with b.loop(_field(b, task, "outputs"), "vector") as c:
            source = b.at(products, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            half = []
            for k in range(TILE):
                column_k = [b.at(source, (i * TILE + k) * s.tiles * s.lanes) for i in range(TILE)]
                half.append(self._linear(b, at, [b.get(place) for place in column_k]))
            channel = b.mul(c, b.i(s.lanes))
            added = b.get(b.at(bias, channel))
            for i in range(m):
                target = b.at(b.at(y, channel), b.mul(row, b.i(i)))
                before = b.at(b.at(rest[0], channel), b.mul(rest[1], b.i(i))) if skip else None
                for k, value in enumerate(self._linear(b, at, [half[k][i] for k in range(TILE)])):
                    value = b.fadd(value, added)
                    value = b.select(b.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
                    value = b.fmul(value, scale)
                    if before is not None:
                        value = b.fadd(value, b.get(b.at(before, b.mul(column, b.i(k)))))
                    b.put(value, b.at(target, b.mul(column, b.i(k))), past_caches)
        b.ret_void()
        return function

    def _copy_in(self) -> ir.Function:
        """side x side pixels at (top, left) of a map of height x width, zeros where they leave it, densely."""
        function, b = self._function("copy_in", "x_ptr row top left height width vectors side to_ptr")
        x, row, top, left, height, width, vectors, side, to = function.args
        lanes = b.i(self.shape.lanes)
        pixel = b.mul(vectors, lanes)
        with b.loop(side, "row") as i, b.loop(side, "column") as k:
            y, column = b.add(top, i), b.add(left, k)
            # Unsigned: what lies above or to the left of the map is far below it.
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

    def _kernel(self, name: str, m: int, r: int, transform_output: dict[tuple[bool, bool], ir.Function]) -> None:
        """The convolution, block by block. transform_output: by whether there is a skip, and it goes past caches."""
        s = self.shape
        function, b = self._function(name, "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {n: _field(b, task, n) for n in TASK if n not in ("floor", "scale", "next_block")}
        x, u, bias, y, skip = (b.inttoptr(field[n], PTR) for n in ("x", "weight", "bias", "y", "skip"))
        inputs, outputs = field["inputs"], field["outputs"]
        pixel, y_pixel = b.mul(inputs, b.i(s.lanes)), b.mul(outputs, b.i(s.lanes))
        across = b.cdiv(field["width"], b.i(m))
        tiles = b.mul(across, b.cdiv(field["y_height"], b.i(m)))
        length = b.mul(field["groups"], b.i(s.tiles))  # tiles of a block
        blocks = b.cdiv(tiles, length)
        v_group = b.mul(inputs, b.i(AREA * s.tiles * s.lanes))
        m_group = b.mul(outputs, b.i(AREA * s.tiles * s.lanes))
        v = scratch
        products = b.at(v, b.mul(field["groups"], v_group))
        edge_in = b.at(products, b.mul(field["groups"], m_group))
        edge_out = b.at(edge_in, b.mul(pixel, b.i(AREA)))
        edge_skip = b.at(edge_out, b.mul(y_pixel, b.i(AREA)))
        has_skip = b.icmp_signed("!=", field["skip"], b.i(0))
        past_caches = b.icmp_signed("!=", field["past_caches"], b.i(0))

        def corner(tile: Value) -> tuple[Value, Value]:
            """Row and column of the output that it begins with."""
            return b.mul(b.udiv(tile, across), b.i(m)), b.mul(b.urem(tile, across), b.i(m))

        def group_at(start: Value, group: Value, place: Value) -> Value:
            """Of a tile, counted in its block: the address of its first vector in V or M."""
            return b.at(
                b.at(start, b.mul(b.udiv(place, b.i(s.tiles)), group)), b.mul(b.urem(place, b.i(s.tiles)), b.i(s.lanes))
            )

        counter = b.gep(task, [b.i(TASK.index("next_block"))], source_etype=I64)
        with b.taken(counter, blocks) as (block, following):
            first = b.mul(block, length)
            count = b.minimum(b.sub(tiles, first), length)

            # Tiles in: V.
            with b.loop(count, "tile") as i:
                top, left = corner(b.add(first, i))
                top, left = b.sub(top, field["padding"]), b.sub(left, b.i(r // 2))
                fits = b.and_(b.within(top, TILE, field["height"]), b.within(left, TILE, field["width"]))
                with b.if_then(b.not_(fits)):
                    size = [field["height"], field["width"], inputs, b.i(TILE)]
                    b.call(self.copy_in, [x, field["x_row"], top, left, *size, edge_in])
                source = b.at(x, b.add(b.mul(top, field["x_row"]), b.mul(left, pixel)))
                source = b.select(fits, source, edge_in)
                row = b.select(fits, field["x_row"], b.mul(pixel, b.i(TILE)))
                b.call(self.transform_input, [source, row, pixel, inputs, group_at(v, v_group, i)])

            # Products: M. Meanwhile memory is asked for: of a sixth of the tiles at a time, one row at each point.
            groups = b.cdiv(count, b.i(s.tiles))
            full, rest = b.udiv(outputs, b.i(s.vectors)), b.urem(outputs, b.i(s.vectors))
            with b.loop(b.i(AREA), "point") as point:
                part, line = b.udiv(point, b.i(TILE)), b.urem(point, b.i(TILE))
                begin = b.udiv(b.mul(part, count), b.i(TILE))
                number = b.sub(b.udiv(b.mul(b.add(part, b.i(1)), count), b.i(TILE)), begin)
                with b.if_then(b.icmp_signed(">", number, b.i(0))), b.loop(number, "tile") as i:
                    i = b.add(begin, i)
                    top, left = corner(b.add(b.mul(following, length), i))
                    row = b.sub(b.add(top, line), field["padding"])
                    source = b.at(x, b.add(b.mul(row, field["x_row"]), b.mul(left, pixel)))
                    b.call(self.ask_for, [source, b.mul(inputs, b.i(m))])  # harmless where none follows
                    with b.if_then(b.and_(has_skip, b.icmp_signed("<", line, b.i(m)))):
                        top, left = corner(b.add(first, i))
                        row = b.mul(b.add(top, line), field["skip_row"])
                        b.call(self.ask_for, [b.at(skip, b.add(row, b.mul(left, y_pixel))), b.mul(outputs, b.i(m))])
                for vectors, multiply in self.multiply.items():
                    # The last strip has the rest of the vectors, those before it all that a strip can have.
                    strips = full if vectors == s.vectors else b.zext(b.icmp_signed("==", rest, b.i(vectors)), I64)
                    before = b.i(0) if vectors == s.vectors else full
                    with b.if_then(b.icmp_signed(">", strips, b.i(0))), b.loop(strips, "strip") as strip:
                        start = b.mul(b.add(before, strip), b.i(s.vectors * s.lanes))
                        weights = b.at(u, b.mul(b.mul(start, b.i(AREA)), pixel))
                        target = b.at(products, b.mul(start, b.i(AREA * s.tiles)))
                        b.call(multiply, [v, weights, target, point, inputs, outputs, groups])

            # Tiles out.
            with b.loop(count, "tile") as i:
                top, left = corner(b.add(first, i))
                fits = b.and_(b.within(top, m, field["y_height"]), b.within(left, m, field["width"]))
                target = b.at(y, b.add(b.mul(top, field["y_row"]), b.mul(left, y_pixel)))
                edge_row = b.mul(y_pixel, b.i(m))
                row = b.select(fits, field["y_row"], edge_row)
                operands = [group_at(products, m_group, i), bias, task, b.select(fits, target, edge_out), row, y_pixel]
                before = b.at(skip, b.add(b.mul(top, field["skip_row"]), b.mul(left, y_pixel)))
                before, row = b.select(fits, before, edge_skip), b.select(fits, field["skip_row"], edge_row)
                with b.if_then(b.and_(has_skip, b.not_(fits))):
                    size = [field["y_height"], field["width"], outputs, b.i(m)]
                    b.call(self.copy_in, [skip, field["skip_row"], top, left, *size, edge_skip])
                past = b.and_(past_caches, fits)
                for (with_skip, goes_past), transform in transform_output.items():
                    chosen = b.and_(b.equal(has_skip, with_skip), b.equal(past, goes_past))
                    with b.if_then(chosen):
                        b.call(transform, [*operands, before, row] if with_skip else operands)
                with b.if_then(b.not_(fits)):
                    rows = b.minimum(b.i(m), b.sub(field["y_height"], top))
                    columns = b.minimum(b.i(m), b.sub(field["width"], left))
                    with b.loop(rows, "row") as row, b.loop(b.mul(columns, outputs), "vector") as c:
                        c = b.mul(c, b.i(s.lanes))
                        value = b.get(b.at(edge_out, b.add(b.mul(row, edge_row), c)))
                        b.put(value, b.at(target, b.add(b.mul(row, field["y_row"]), c)))
        if goes_past_caches(s):
            b.call(self.store_fence, [])  # without it, other threads may be told of the end before all is in memory
        b.ret_void()

    def _linear(self, b: Builder, matrix: np.ndarray, x: Sequence[Value]) -> list[Value]:
        """matrix @ x in few operations: of a pair of points ±a, sum and difference serve all rows or columns."""
        twins = _twins(matrix.T)
        if twins:  # of columns: combine the two inputs first
            matrix, x = matrix.copy(), list(x)
            for i, j in twins:
                x[i], x[j] = b.fadd(x[i], x[j]), b.fsub(x[i], x[j])
                even = np.isclose(matrix[:, i], matrix[:, j])
                matrix[:, i], matrix[:, j] = np.where(even, matrix[:, i], 0), np.where(even, 0, matrix[:, i])
            return [self._sum(b, row, x) for row in matrix]
        twins = _twins(matrix)
        found: dict[int, Value] = {}
        for i, j in twins:  # of rows: even ± odd part
            same = np.isclose(matrix[i], matrix[j])
            even = self._sum(b, np.where(same, matrix[i], 0), x)
            odd = np.where(same, 0, matrix[i])
            factor = odd[np.flatnonzero(odd)[-1]]
            part = self._sum(b, odd / factor, x)
            found[i], found[j] = (b.call(self.fmuladd, [b.number(f), part, even]) for f in (factor, -factor))
        return [found[i] if i in found else self._sum(b, row, x) for i, row in enumerate(matrix)]

    def _sum(self, b: Builder, row: np.ndarray, x: Sequence[Value]) -> Value:
        """row · x; terms of factor 1 first, which need no multiplication."""
        terms = sorted(np.flatnonzero(row), key=lambda i: row[i] != 1)
        first, *others = terms
        total = x[first] if row[first] == 1 else b.fmul(b.number(row[first]), x[first])
        for i in others:
            if row[i] == 1:
                total = b.fadd(total, x[i])
            else:
                total = b.call(self.fmuladd, [b.number(row[i]), x[i], total])
        return total


def _field(b: Builder, task: Value, name: str, kind: ir.Type = I64) -> Value:
    return b.load(b.gep(task, [b.i(TASK.index(name))], source_etype=I64), name=name, typ=kind)


def _twins(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows that differ in signs alone, in some but not in all of at least two entries."""
    pairs = []
    for i in range(len(matrix)):
        for j in range(i + 1, len(matrix)):
            a, b = matrix[i], matrix[j]
            signs = np.sign(a * b)
            if np.allclose(abs(a), abs(b)) and 1 in signs and -1 in signs:
                pairs.append((i, j))
    return pairs
