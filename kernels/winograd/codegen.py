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
from .tiles import AREA, CACHE_LINE_FLOATS, SUM_BLOCK, Shape, TileGrid, Tiles, load_field
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
    "non_temporal",  # whether to write past the caches; if so, y, y_row and y_image are multiples of a cache line
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
    return shape.lanes == CACHE_LINE_FLOATS


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
            _ConvolutionKernel(self, name, m, r, outputs)

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
            with b.reduction(b.udiv(inputs, b.i(SUM_BLOCK // s.lanes)), "block", s.tiles * vectors) as (block, sums):
                a = b.at(left, b.mul(block, b.i(SUM_BLOCK * AREA * s.tiles)))
                w = b.at(weights, b.mul(block, b.i(SUM_BLOCK * vectors * s.lanes)))
                part = [b.constant(0.0)] * len(sums)
                for k in range(SUM_BLOCK):
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

    def _transform_output(self, name: str, m: int, r: int, epilogue: str, non_temporal: bool) -> ir.Function:
        """One tile of output: Aᵀ M A, then bias, ReLU, scale and what `EPILOGUES` says."""
        s = self.shape
        arguments = "m_ptr bias_ptr task_ptr y_ptr row column" + " skip_ptr skip_row" * bool(epilogue)
        function, b = self.function(f"{name}_output{epilogue}{'_non_temporal' * non_temporal}", arguments)
        products, bias, task, y, row, column, *rest = function.args
        at = matrices(m, r)[0]
        floor, scale = (b.splat(load_field(b, task, field, TASK, F32)) for field in ("floor", "scale"))
        with b.loop(load_field(b, task, "outputs", TASK), "vector") as c:
            source = b.at(products, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            half = []
            for k in range(TILE):
                column_k = [b.at(source, (i * TILE + k) * s.tiles * s.lanes) for i in range(TILE)]
                half.append(self.apply_matrix(b, at, [b.get(place) for place in column_k]))
            channel = b.mul(c, b.i(s.lanes))
            added = b.get(b.at(bias, channel))
            for i in range(m):
                target = b.at(b.at(y, channel), b.mul(row, b.i(i)))
                before = b.at(b.at(rest[0], channel), b.mul(rest[1], b.i(i))) if epilogue else None
                for k, value in enumerate(self.apply_matrix(b, at, [half[k][i] for k in range(TILE)])):
                    value = b.fadd(value, added)
                    value = b.select(b.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
                    value = b.fmul(value, scale)
                    if before is not None:
                        other = b.get(b.at(before, b.mul(column, b.i(k))))
                        if epilogue == "skip":
                            value = b.fadd(value, other)
                        else:  # PyTorch lets the gradient pass where a NaN was
                            closed = b.fcmp_ordered("<=", other, b.constant(0.0))
                            value = b.select(closed, b.constant(0.0), value)
                    b.put(value, b.at(target, b.mul(column, b.i(k))), non_temporal)
        b.ret_void()
        return function


class _ConvolutionKernel:
    """Writes the convolution of m outputs and r taps, block by block: what its parts share, then the parts."""

    def __init__(
        self, module: _Convolutions, name: str, m: int, r: int, transform_output: dict[tuple[str, bool], ir.Function]
    ):
        """transform_output: by epilogue, and whether it goes past the caches."""
        self.module, self.m, self.r, self.transform_output = module, m, r, transform_output
        s = module.shape
        function, b = module.function(name, "task_ptr scratch_ptr", internal=False)
        self.b, (self.task, scratch) = b, function.args
        self.field = {n: load_field(b, self.task, n, TASK) for n in TASK if n not in ("floor", "scale", "next_block")}
        self.x, self.u, self.bias, self.y, self.skip = (
            b.inttoptr(self.field[n], PTR) for n in ("x", "weight", "bias", "y", "skip")
        )
        self.inputs, self.outputs = self.field["inputs"], self.field["outputs"]
        self.pixel, self.y_pixel = b.mul(self.inputs, b.i(s.lanes)), b.mul(self.outputs, b.i(s.lanes))
        self.grid = TileGrid(b, self.field["y_height"], self.field["width"], self.field["images"], m)
        self.length = b.mul(self.field["groups"], b.i(s.tiles))  # tiles of a block
        blocks = b.cdiv(self.grid.tiles, self.length)
        self._split_scratch(scratch)
        has_skip = self.has_skip = b.icmp_signed("!=", self.field["skip"], b.i(0))
        masks = b.icmp_signed("!=", self.field["masks"], b.i(0))
        self.epilogue_is = {
            "": b.not_(has_skip),
            "skip": b.and_(has_skip, b.not_(masks)),
            "mask": b.and_(has_skip, masks),
        }
        self.non_temporal = b.icmp_signed("!=", self.field["non_temporal"], b.i(0))

        counter = b.gep(self.task, [b.i(TASK.index("next_block"))], source_etype=I64)
        with b.shared_loop(counter, blocks) as (block, following):
            first = b.mul(block, self.length)
            count = b.minimum(b.sub(self.grid.tiles, first), self.length)
            self._transform_tiles(first, count)
            self._multiply(first, count, following)
            self._write_tiles(first, count)
        if uses_non_temporal_stores(s):
            b.call(module.store_fence, [])  # without it, other threads may be told of the end before all is in memory
        b.ret_void()

    def _split_scratch(self, scratch: Value) -> None:
        """Into V, M, and a tile of input, output and skip each for those that leave their maps."""
        b, s = self.b, self.module.shape
        self.v_group = b.mul(self.inputs, b.i(AREA * s.tiles * s.lanes))
        self.m_group = b.mul(self.outputs, b.i(AREA * s.tiles * s.lanes))
        self.v = scratch
        self.products = b.at(self.v, b.mul(self.field["groups"], self.v_group))
        self.edge_in = b.at(self.products, b.mul(self.field["groups"], self.m_group))
        self.edge_out = b.at(self.edge_in, b.mul(self.pixel, b.i(AREA)))
        self.edge_skip = b.at(self.edge_out, b.mul(self.y_pixel, b.i(AREA)))

    def _image(self, map_: str, image: Value) -> Value:
        """The address of an image in one of the maps x, y and skip."""
        return self.b.at(getattr(self, map_), self.b.mul(image, self.field[f"{map_}_image"]))

    def _transform_tiles(self, first: Value, count: Value) -> None:
        """Tiles of input into V."""
        b, field, module = self.b, self.field, self.module
        with b.loop(count, "tile") as i:
            image, top, left = self.grid.corner(b.add(first, i))
            place = b.sub(top, field["padding"]), b.sub(left, b.i(self.r // 2))
            size = field["height"], field["width"]
            x = self._image("x", image)
            source, row = module.window(b, x, field["x_row"], place, size, self.inputs, TILE, self.edge_in)
            target = module.tile_address(b, self.v, self.v_group, i)
            b.call(module.transform_input, [source, row, self.pixel, self.inputs, target])

    def _multiply(self, first: Value, count: Value, following: Value) -> None:
        """V times U into M, point by point. Meanwhile memory is asked for."""
        b, module, s = self.b, self.module, self.module.shape
        groups = b.cdiv(count, b.i(s.tiles))
        full, rest = b.udiv(self.outputs, b.i(s.vectors)), b.urem(self.outputs, b.i(s.vectors))
        with b.loop(b.i(AREA), "point") as point:
            self._prefetch_next(first, count, following, point)
            for vectors, start in module.strips(b, full, rest):
                weights = b.at(self.u, b.mul(b.mul(start, b.i(AREA)), self.pixel))
                target = b.at(self.products, b.mul(start, b.i(AREA * s.tiles)))
                operands = [self.v, weights, target, point, self.inputs, self.outputs, groups]
                b.call(module.multiply[vectors], operands)

    def _prefetch_next(self, first: Value, count: Value, following: Value, point: Value) -> None:
        """Asks for a sixth of the next block's tiles and of this one's skip, one row at each of the 36 points."""
        b, field, module, m = self.b, self.field, self.module, self.b.i(self.m)
        part, line = b.udiv(point, b.i(TILE)), b.urem(point, b.i(TILE))
        begin = b.udiv(b.mul(part, count), b.i(TILE))
        number = b.sub(b.udiv(b.mul(b.add(part, b.i(1)), count), b.i(TILE)), begin)
        with b.if_then(b.icmp_signed(">", number, b.i(0))), b.loop(number, "tile") as i:
            i = b.add(begin, i)
            image, top, left = self.grid.corner(b.add(b.mul(following, self.length), i))
            row = b.sub(b.add(top, line), field["padding"])
            x = self._image("x", image)
            source = b.at(x, b.add(b.mul(row, field["x_row"]), b.mul(left, self.pixel)))
            b.call(module.prefetch, [source, b.mul(self.inputs, m)])  # harmless where none follows
            with b.if_then(b.and_(self.has_skip, b.icmp_signed("<", line, m))):
                image, top, left = self.grid.corner(b.add(first, i))
                row = b.mul(b.add(top, line), field["skip_row"])
                skip = self._image("skip", image)
                source = b.at(skip, b.add(row, b.mul(left, self.y_pixel)))
                b.call(module.prefetch, [source, b.mul(self.outputs, m)])

    def _write_tiles(self, first: Value, count: Value) -> None:
        """M into tiles of output; those that leave the map by way of `edge_out`."""
        b, field, module, m = self.b, self.field, self.module, self.b.i(self.m)
        with b.loop(count, "tile") as i:
            image, top, left = self.grid.corner(b.add(first, i))
            fits = b.and_(b.within(top, self.m, field["y_height"]), b.within(left, self.m, field["width"]))
            y = self._image("y", image)
            target = b.at(y, b.add(b.mul(top, field["y_row"]), b.mul(left, self.y_pixel)))
            edge_row = b.mul(self.y_pixel, m)
            row = b.select(fits, field["y_row"], edge_row)
            products = module.tile_address(b, self.products, self.m_group, i)
            operands = [products, self.bias, self.task, b.select(fits, target, self.edge_out), row, self.y_pixel]
            operands_skip = self._skip_tile(image, top, left, fits, edge_row)
            past = b.and_(self.non_temporal, fits)
            for (epilogue, goes_past), transform in self.transform_output.items():
                chosen = b.and_(self.epilogue_is[epilogue], b.equal(past, goes_past))
                with b.if_then(chosen):
                    b.call(transform, [*operands, *operands_skip] if epilogue else operands)
            with b.if_then(b.not_(fits)):
                self._copy_out(target, top, left, edge_row)

    def _skip_tile(self, image: Value, top: Value, left: Value, fits: Value, edge_row: Value) -> tuple[Value, Value]:
        """Address and distance of rows of the skip's tile, which is copied where it leaves its map."""
        b, field = self.b, self.field
        skip = self._image("skip", image)
        tile = b.at(skip, b.add(b.mul(top, field["skip_row"]), b.mul(left, self.y_pixel)))
        tile, row = b.select(fits, tile, self.edge_skip), b.select(fits, field["skip_row"], edge_row)
        with b.if_then(b.and_(self.has_skip, b.not_(fits))):
            size = [field["y_height"], field["width"], self.outputs, b.i(self.m)]
            skip = self._image("skip", image)
            b.call(self.module.copy_padded, [skip, field["skip_row"], top, left, *size, self.edge_skip])
        return tile, row

    def _copy_out(self, target: Value, top: Value, left: Value, edge_row: Value) -> None:
        """What lies in the map of a tile in `edge_out`."""
        b, field, m = self.b, self.field, self.b.i(self.m)
        rows = b.minimum(m, b.sub(field["y_height"], top))
        columns = b.minimum(m, b.sub(field["width"], left))
        with b.loop(rows, "row") as row, b.loop(b.mul(columns, self.outputs), "vector") as c:
            c = b.mul(c, b.i(self.module.shape.lanes))
            value = b.get(b.at(self.edge_out, b.add(b.mul(row, edge_row), c)))
            b.put(value, b.at(target, b.add(b.mul(row, field["y_row"]), c)))
