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
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from kernels.winograd_cpu.transforms import TILE, matrices

AREA = TILE * TILE
KERNELS = {"conv3x3": (4, 3), "conv5x5": (2, 5)}  # name -> (m outputs, r taps)

F32, I64, PTR, VOID = ir.FloatType(), ir.IntType(64), ir.PointerType(), ir.VoidType()
FLOAT_BYTES = 4
BLOCK = 16  # channels that are summed by themselves; numbers of channels are multiples of it
Value = Any  # one of LLVM's; llvmlite's builder does not say what its methods give


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


class _Module:
    def __init__(self, shape: Shape):
        self.shape = shape
        self.vector = ir.VectorType(F32, shape.lanes)
        self.module = ir.Module(name="winograd")
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        # Fused where the CPU can, a multiplication and an addition where it cannot.
        self.fmuladd = ir.Function(self.module, kind, f"llvm.fmuladd.v{shape.lanes}f32")
        self.copy_in = self._copy_in()
        self.multiply = {vectors: self._multiply(vectors) for vectors in range(1, shape.vectors + 1)}
        self.transform_input = self._transform_input()
        for name, (m, r) in KERNELS.items():
            outputs = {skip: self._transform_output(name, m, r, skip) for skip in (False, True)}
            self._kernel(name, m, r, outputs)

    def _function(self, name: str, arguments: str, internal: bool = True) -> tuple[ir.Function, "_Builder"]:
        """A function of 64-bit whole numbers and, where a name ends in `_ptr`, addresses; and what writes its body."""
        names = arguments.split()
        kinds = [PTR if n.endswith("_ptr") else I64 for n in names]
        function = ir.Function(self.module, ir.FunctionType(VOID, kinds), name)
        if internal:
            function.linkage = "internal"
            function.attributes.add("noinline")
        for argument, n in zip(function.args, names, strict=True):
            argument.name = n
        return function, _Builder(function.append_basic_block("entry"), self.vector)

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
        """M = V U for a block and a strip of so many vectors: 36 matrix products, in register blocks.

        Sums over channels are sums of sums of 16, whose rounding does not grow with the number of channels (pairwise
        summation of a kind: Higham 1993). That is what makes the convolution as accurate as a direct one.
        """
        s = self.shape
        function, b = self._function(f"multiply_{vectors}", "v_ptr u_ptr m_ptr inputs outputs groups")
        v, u, m, inputs, outputs, groups = function.args
        plane = s.tiles * s.lanes
        with b.loop(b.i(AREA), "point") as p, b.loop(groups, "group") as group:
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

    def _transform_output(self, name: str, m: int, r: int, skip: bool) -> ir.Function:
        """One tile of output: Aᵀ M A, then bias, ReLU, scale and skip."""
        s = self.shape
        arguments = "m_ptr bias_ptr task_ptr y_ptr row column" + " skip_ptr skip_row" * skip
        function, b = self._function(f"{name}_output{'_skip' * skip}", arguments)
        products, bias, task, y, row, column, *rest = function.args
        at = matrices(m, r)[0]
        floor, scale = (b.splat(b.field(task, field, F32)) for field in ("floor", "scale"))
        with b.loop(b.field(task, "outputs"), "vector") as c:
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
                    b.put(value, b.at(target, b.mul(column, b.i(k))))
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

    def _kernel(self, name: str, m: int, r: int, transform_output: dict[bool, ir.Function]) -> None:
        s = self.shape
        function, b = self._function(name, "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {n: b.field(task, n) for n in TASK if n not in ("floor", "scale", "next_block")}
        x, u, bias, y, skip = (b.inttoptr(field[n], PTR) for n in ("x", "weight", "bias", "y", "skip"))
        inputs, outputs, groups = field["inputs"], field["outputs"], field["groups"]
        pixel, y_pixel = b.mul(inputs, b.i(s.lanes)), b.mul(outputs, b.i(s.lanes))
        across = b.cdiv(field["width"], b.i(m))
        tiles = b.mul(across, b.cdiv(field["y_height"], b.i(m)))
        blocks = b.cdiv(tiles, b.mul(groups, b.i(s.tiles)))
        v_group = b.mul(inputs, b.i(AREA * s.tiles * s.lanes))
        m_group = b.mul(outputs, b.i(AREA * s.tiles * s.lanes))
        v = scratch
        products = b.at(v, b.mul(groups, v_group))
        edge_in = b.at(products, b.mul(groups, m_group))
        edge_out = b.at(edge_in, b.mul(pixel, b.i(AREA)))
        edge_skip = b.at(edge_out, b.mul(y_pixel, b.i(AREA)))

        take = b.append_basic_block("take")
        work = b.append_basic_block("work")
        done = b.append_basic_block("done")
        b.branch(take)
        b.position_at_end(take)
        counter = b.gep(task, [b.i(TASK.index("next_block"))], source_etype=I64)
        block = b.atomic_rmw("add", counter, b.i(1), "monotonic")
        b.cbranch(b.icmp_signed("<", block, blocks), work, done)
        b.position_at_end(work)
        first = b.mul(block, b.mul(groups, b.i(s.tiles)))
        count = b.minimum(b.sub(tiles, first), b.mul(groups, b.i(s.tiles)))

        with b.loop(count, "tile") as i:
            tile = b.add(first, i)
            top = b.sub(b.mul(b.udiv(tile, across), b.i(m)), field["padding"])
            left = b.sub(b.mul(b.urem(tile, across), b.i(m)), b.i(r // 2))
            group, place = b.udiv(i, b.i(s.tiles)), b.urem(i, b.i(s.tiles))
            target = b.at(b.at(v, b.mul(group, v_group)), b.mul(place, b.i(s.lanes)))
            fits = b.and_(b.within(top, TILE, field["height"]), b.within(left, TILE, field["width"]))
            with b.if_then(b.not_(fits)):
                size = [field["height"], field["width"], inputs, b.i(TILE)]
                b.call(self.copy_in, [x, field["x_row"], top, left, *size, edge_in])
            source = b.at(x, b.add(b.mul(top, field["x_row"]), b.mul(left, pixel)))
            source = b.select(fits, source, edge_in)
            row = b.select(fits, field["x_row"], b.mul(pixel, b.i(TILE)))
            b.call(self.transform_input, [source, row, pixel, inputs, target])

        groups = b.cdiv(count, b.i(s.tiles))
        full, rest = b.udiv(outputs, b.i(s.vectors)), b.urem(outputs, b.i(s.vectors))
        for vectors, multiply in self.multiply.items():
            # The last strip has the rest of the vectors, those before it all that a strip can have.
            strips = full if vectors == s.vectors else b.zext(b.icmp_signed("==", rest, b.i(vectors)), I64)
            before = b.i(0) if vectors == s.vectors else full
            with b.if_then(b.icmp_signed(">", strips, b.i(0))), b.loop(strips, "strip") as strip:
                start = b.mul(b.add(before, strip), b.i(s.vectors * s.lanes))
                weights = b.at(u, b.mul(b.mul(start, b.i(AREA)), pixel))
                target = b.at(products, b.mul(start, b.i(AREA * s.tiles)))
                b.call(multiply, [v, weights, target, inputs, outputs, groups])

        with b.loop(count, "tile") as i:
            tile = b.add(first, i)
            top = b.mul(b.udiv(tile, across), b.i(m))
            left = b.mul(b.urem(tile, across), b.i(m))
            group, place = b.udiv(i, b.i(s.tiles)), b.urem(i, b.i(s.tiles))
            source = b.at(products, b.mul(group, m_group))
            source = b.at(source, b.mul(place, b.i(s.lanes)))
            target = b.at(y, b.add(b.mul(top, field["y_row"]), b.mul(left, y_pixel)))
            fits = b.and_(b.within(top, m, field["y_height"]), b.within(left, m, field["width"]))
            edge_row = b.mul(y_pixel, b.i(m))
            row = b.select(fits, field["y_row"], edge_row)
            operands = [source, bias, task, b.select(fits, target, edge_out), row, y_pixel]
            with b.if_else(b.icmp_signed("==", field["skip"], b.i(0))) as (plain, added):
                with plain:
                    b.call(transform_output[False], operands)
                with added:
                    with b.if_then(b.not_(fits)):
                        size = [field["y_height"], field["width"], outputs, b.i(m)]
                        b.call(self.copy_in, [skip, field["skip_row"], top, left, *size, edge_skip])
                    before = b.at(skip, b.add(b.mul(top, field["skip_row"]), b.mul(left, y_pixel)))
                    before, row = b.select(fits, before, edge_skip), b.select(fits, field["skip_row"], edge_row)
                    b.call(transform_output[True], [*operands, before, row])
            with b.if_then(b.not_(fits)):
                rows = b.minimum(b.i(m), b.sub(field["y_height"], top))
                columns = b.minimum(b.i(m), b.sub(field["width"], left))
                with b.loop(rows, "row") as row, b.loop(b.mul(columns, outputs), "vector") as c:
                    c = b.mul(c, b.i(s.lanes))
                    value = b.get(b.at(edge_out, b.add(b.mul(row, edge_row), c)))
                    b.put(value, b.at(target, b.add(b.mul(row, field["y_row"]), c)))
        b.branch(take)
        b.position_at_end(done)
        b.ret_void()

    def _linear(self, b: "_Builder", matrix: np.ndarray, x: Sequence[Value]) -> list[Value]:
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

    def _sum(self, b: "_Builder", row: np.ndarray, x: Sequence[Value]) -> Value:
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


class _Builder(ir.IRBuilder):
    """llvmlite's builder with loops, and floats at distances counted in floats."""

    def __init__(self, block: ir.Block, vector: ir.VectorType):
        super().__init__(block)
        self.vector = vector

    def i(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def number(self, value: float) -> ir.Constant:
        """A vector of one value, rounded to fp32."""
        return ir.Constant(self.vector, [float(np.float32(value))] * self.vector.count)

    def at(self, pointer: Value, distance: Value | int) -> Value:
        """The address `distance` floats on."""
        distance = self.i(distance) if isinstance(distance, int) else distance
        return self.gep(pointer, [distance], source_etype=F32)  # of a tile at an edge it may lie outside its map

    def get(self, pointer: Value) -> Value:
        return self.load(pointer, typ=self.vector, align=FLOAT_BYTES)

    def put(self, value: Value, pointer: Value) -> None:
        self.store(value, pointer, align=FLOAT_BYTES)

    def splat(self, value: Value) -> Value:
        empty = ir.Constant(self.vector, ir.Undefined)
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), [0] * self.vector.count)
        return self.shuffle_vector(self.insert_element(empty, value, ir.Constant(ir.IntType(32), 0)), empty, order)

    def broadcast(self, pointer: Value) -> Value:
        """The float there, in all lanes."""
        return self.splat(self.load(pointer, typ=F32, align=FLOAT_BYTES))

    def field(self, task: Value, name: str, kind: ir.Type = I64) -> Value:
        return self.load(self.gep(task, [self.i(TASK.index(name))], source_etype=I64), name=name, typ=kind)

    def cdiv(self, a: Value, b: Value) -> Value:
        return self.udiv(self.add(a, self.sub(b, self.i(1))), b)

    def minimum(self, a: Value, b: Value) -> Value:
        return self.select(self.icmp_signed("<", a, b), a, b)

    def within(self, start: Value, length: int, end: Value) -> Value:
        """Whether start .. start + length lies in 0 .. end."""
        above = self.icmp_signed(">=", start, self.i(0))
        return self.and_(above, self.icmp_signed("<=", self.add(start, self.i(length)), end))

    @contextlib.contextmanager
    def loop(self, count: Value, name: str) -> Iterator[Value]:
        """Its body runs for 0 .. count; count is 1 or more."""
        with self.summing(count, name, 0) as (index, _):
            yield index

    @contextlib.contextmanager
    def summing(self, count: Value, name: str, sums: int) -> Iterator[tuple[Value, list[Value]]]:
        """The same with vectors that start as zeros; the body replaces them in the list, which has the totals after."""
        before, body = self.block, self.append_basic_block(f"{name}s")
        self.branch(body)
        self.position_at_end(body)
        index = self.phi(I64, name)
        places = [self.phi(self.vector) for _ in range(sums)]
        values: list[Value] = list(places)
        yield index, values
        following = self.add(index, self.i(1))
        index.add_incoming(self.i(0), before)
        index.add_incoming(following, self.block)
        for place, value in zip(places, values, strict=True):
            place.add_incoming(self.number(0.0), before)
            place.add_incoming(value, self.block)
        after = self.append_basic_block(f"after_{name}s")
        self.cbranch(self.icmp_signed("<", following, count), body, after)
        self.position_at_end(after)
