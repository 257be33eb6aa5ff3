"""LLVM IR of all kernels; `python -m kernels.winograd.jit` prints what is compiled here.

The convolutions. Tiles of input become V, weights are U, their products M; V and M as in `tiles`, and

    U [strip of Co][36][channel of Ci][vector][lane]   a strip is `Shape.vectors` vectors of Co, the last may have fewer

A thread takes one block of groups of tiles after the other, as many as keep V and M in its L2 cache, and takes a block
from input to output. Tiles are counted through all images of a batch, so that small ones fill all cores.

Maps are larger than the caches, and a core that waits for them computes nothing. So it asks for what it will read next
while it multiplies, and what it writes goes past the caches, which would have to read it first.
"""

import itertools

from llvmlite import ir

from .filters import TASK as FILTER_TASK
from .filters import Filters
from .ir_builder import F32, I64, PTR, VOID, Value
from .tiles import AREA, BLOCK, LINE, Shape, Tiles, field_of
from .transforms import TILE, matrices
from .wgrad import END_TASK, Wgrad
from .wgrad import TASK as WGRAD_TASK

KERNELS = {"conv3x3": (4, 3), "conv5x5": (2, 5)}  # name -> (m outputs, r taps)
NAMES = (*KERNELS, "filter3x3", "filter5x5")
"""Of the functions that `source` has."""
TRAINING_NAMES = (*NAMES, "wgrad3x3", "wgrad5x5", "wgrad_end3x3", "wgrad_end5x5")
"""Of those that it has for training."""

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
    "images",
    "x_image",  # floats from one image to the next
    "y_image",
    "skip_image",
    "masks",  # whether the skip is a mask: where it is not above zero, the output is 0, and nothing is added
    "padding",  # rows of zeros above the input
    "past_caches",  # whether the output goes past the caches; if so, y, y_row and y_image are multiples of a cache line
    "inputs",  # vectors of Ci
    "outputs",  # vectors of Co
    "groups",  # of tiles in a block
    "floor",  # float: results of the convolution below it become it; ReLU's 0, or minus infinity
    "scale",  # float: factor on the convolution before the skip is added
)


TASKS = {"conv": TASK, "filter": FILTER_TASK, "wgrad": WGRAD_TASK, "wgrad_end": END_TASK}
"""Kind of a function, without its size -> fields of what it is called with."""


def source(shape: Shape, training: bool) -> str:
    """LLVM IR of all kernels: name(task, scratch), see `TASKS`. scratch: floats of the thread's own."""
    tiles = _Convolutions(shape, training)
    Filters(tiles)
    if training:
        Wgrad(tiles)
    return str(tiles.module)


def scratch_floats(shape: Shape, inputs: int, outputs: int, groups: int) -> int:
    """How many floats a thread's scratch has, for so many channels in and out and groups of a block."""
    return AREA * (groups * shape.tiles * (inputs + outputs) + inputs + 2 * outputs)


def uses_non_temporal_stores(shape: Shape) -> bool:
    """Whether output may: if a vector is a whole cache line, else parts would be written one by one. AVX-512."""
    return shape.lanes == LINE


EPILOGUES = ("", "skip", "mask")
"""What happens to the convolution after ReLU and scale: nothing, the skip is added, or is a mask."""


class _Convolutions(Tiles):
    def __init__(self, shape: Shape, masks: bool):
        super().__init__(shape)
        self.store_fence = ir.Function(self.module, ir.FunctionType(VOID, []), "llvm.x86.sse.sfence")
        self.multiply = {vectors: self._multiply(vectors) for vectors in range(1, shape.vectors + 1)}
        for name, (m, r) in KERNELS.items():
            past = (False, True) if uses_non_temporal_stores(shape) else (False,)
            kinds = itertools.product(EPILOGUES if masks else EPILOGUES[:2], past)
            outputs = {kind: self._transform_output(name, m, r, *kind) for kind in kinds}
            self._kernel(name, m, r, outputs)

    def _multiply(self, vectors: int) -> ir.Function:
        """M = V U at one of 36 points, for a block and a strip of so many vectors: a matrix product in register blocks.

        Sums over channels are sums of sums of 16, whose rounding does not grow with the number of channels (pairwise
        summation of a kind: Higham 1993). That is what makes the convolution as accurate as a direct one.
        """
        s = self.shape
        function, b = self.function(f"multiply_{vectors}", "v_ptr u_ptr m_ptr p inputs outputs groups")
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
                            part[i] = b.fma(value, row[j], part[i]) if k else b.fmul(value, row[j])
                sums[:] = [b.fadd(total, new) for total, new in zip(sums, part, strict=True)]
            target = b.at(m, b.mul(b.add(b.mul(b.mul(group, outputs), b.i(AREA)), p), b.i(plane)))
            for i, total in enumerate(sums):
                j, tile = divmod(i, s.tiles)
                b.put(total, b.at(target, j * AREA * plane + tile * s.lanes))
        b.ret_void()
        return function

    def _transform_output(self, name: str, m: int, r: int, epilogue: str, past_caches: bool) -> ir.Function:
        """One tile of output: Aᵀ M A, then bias, ReLU, scale and what `EPILOGUES` says."""
        s = self.shape
        arguments = "m_ptr bias_ptr task_ptr y_ptr row column" + " skip_ptr skip_row" * bool(epilogue)
        function, b = self.function(f"{name}_output{epilogue}{'_past' * past_caches}", arguments)
        products, bias, task, y, row, column, *rest = function.args
        at = matrices(m, r)[0]
        floor, scale = (b.splat(field_of(b, task, field, TASK, F32)) for field in ("floor", "scale"))
        with b.loop(field_of(b, task, "outputs", TASK), "vector") as c:
            source = b.at(products, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            half = []
            for k in range(TILE):
                column_k = [b.at(source, (i * TILE + k) * s.tiles * s.lanes) for i in range(TILE)]
                half.append(self.linear(b, at, [b.get(place) for place in column_k]))
            channel = b.mul(c, b.i(s.lanes))
            added = b.get(b.at(bias, channel))
            for i in range(m):
                target = b.at(b.at(y, channel), b.mul(row, b.i(i)))
                before = b.at(b.at(rest[0], channel), b.mul(rest[1], b.i(i))) if epilogue else None
                for k, value in enumerate(self.linear(b, at, [half[k][i] for k in range(TILE)])):
                    value = b.fadd(value, added)
                    value = b.select(b.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
                    value = b.fmul(value, scale)
                    if before is not None:
                        other = b.get(b.at(before, b.mul(column, b.i(k))))
                        if epilogue == "skip":
                            value = b.fadd(value, other)
                        else:  # PyTorch lets the gradient pass where a NaN was
                            closed = b.fcmp_ordered("<=", other, b.number(0.0))
                            value = b.select(closed, b.number(0.0), value)
                    b.put(value, b.at(target, b.mul(column, b.i(k))), past_caches)
        b.ret_void()
        return function

    def _kernel(self, name: str, m: int, r: int, transform_output: dict[tuple[str, bool], ir.Function]) -> None:
        """The convolution, block by block. transform_output: by epilogue, and whether it goes past caches."""
        s = self.shape
        function, b = self.function(name, "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {n: field_of(b, task, n, TASK) for n in TASK if n not in ("floor", "scale", "next_block")}
        x, u, bias, y, skip = (b.inttoptr(field[n], PTR) for n in ("x", "weight", "bias", "y", "skip"))
        inputs, outputs = field["inputs"], field["outputs"]
        pixel, y_pixel = b.mul(inputs, b.i(s.lanes)), b.mul(outputs, b.i(s.lanes))
        across = b.cdiv(field["width"], b.i(m))
        down = b.cdiv(field["y_height"], b.i(m))
        each = b.mul(across, down)  # tiles of an image
        tiles = b.mul(each, field["images"])
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
        masks = b.icmp_signed("!=", field["masks"], b.i(0))
        epilogue_is = {"": b.not_(has_skip), "skip": b.and_(has_skip, b.not_(masks)), "mask": b.and_(has_skip, masks)}
        past_caches = b.icmp_signed("!=", field["past_caches"], b.i(0))

        def corner(tile: Value) -> tuple[Value, Value, Value]:
            """Its image, and row and column of the output that it begins with."""
            image, place = b.udiv(tile, each), b.urem(tile, each)
            return image, b.mul(b.udiv(place, across), b.i(m)), b.mul(b.urem(place, across), b.i(m))

        def of(map_: str, image: Value) -> Value:
            """The address of an image in a map."""
            return b.at({"x": x, "y": y, "skip": skip}[map_], b.mul(image, field[f"{map_}_image"]))

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
                image, top, left = corner(b.add(first, i))
                place = b.sub(top, field["padding"]), b.sub(left, b.i(r // 2))
                size = field["height"], field["width"]
                source, row = self.window(b, of("x", image), field["x_row"], place, size, inputs, TILE, edge_in)
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
                    image, top, left = corner(b.add(b.mul(following, length), i))
                    row = b.sub(b.add(top, line), field["padding"])
                    source = b.at(of("x", image), b.add(b.mul(row, field["x_row"]), b.mul(left, pixel)))
                    b.call(self.ask_for, [source, b.mul(inputs, b.i(m))])  # harmless where none follows
                    with b.if_then(b.and_(has_skip, b.icmp_signed("<", line, b.i(m)))):
                        image, top, left = corner(b.add(first, i))
                        row = b.mul(b.add(top, line), field["skip_row"])
                        b.call(
                            self.ask_for,
                            [b.at(of("skip", image), b.add(row, b.mul(left, y_pixel))), b.mul(outputs, b.i(m))],
                        )
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
                image, top, left = corner(b.add(first, i))
                fits = b.and_(b.within(top, m, field["y_height"]), b.within(left, m, field["width"]))
                target = b.at(of("y", image), b.add(b.mul(top, field["y_row"]), b.mul(left, y_pixel)))
                edge_row = b.mul(y_pixel, b.i(m))
                row = b.select(fits, field["y_row"], edge_row)
                operands = [group_at(products, m_group, i), bias, task, b.select(fits, target, edge_out), row, y_pixel]
                before = b.at(of("skip", image), b.add(b.mul(top, field["skip_row"]), b.mul(left, y_pixel)))
                before, row = b.select(fits, before, edge_skip), b.select(fits, field["skip_row"], edge_row)
                with b.if_then(b.and_(has_skip, b.not_(fits))):
                    size = [field["y_height"], field["width"], outputs, b.i(m)]
                    b.call(self.copy_in, [of("skip", image), field["skip_row"], top, left, *size, edge_skip])
                past = b.and_(past_caches, fits)
                for (epilogue, goes_past), transform in transform_output.items():
                    chosen = b.and_(epilogue_is[epilogue], b.equal(past, goes_past))
                    with b.if_then(chosen):
                        b.call(transform, [*operands, before, row] if epilogue else operands)
                with b.if_then(b.not_(fits)):
                    rows = b.minimum(b.i(m), b.sub(field["y_height"], top))
                    columns = b.minimum(b.i(m), b.sub(field["width"], left))
                    with b.loop(rows, "row") as row, b.loop(b.mul(columns, outputs), "vector") as c:
                        c = b.mul(c, b.i(s.lanes))
                        value = b.get(b.at(edge_out, b.add(b.mul(row, edge_row), c)))
                        b.put(value, b.at(target, b.add(b.mul(row, field["y_row"]), c)))
        if uses_non_temporal_stores(s):
            b.call(self.store_fence, [])  # without it, other threads may be told of the end before all is in memory
        b.ret_void()
