"""LLVM IR of all kernels, and of the convolutions in particular; `python -m kernels.winograd.jit` prints the whole.

Input tiles are transformed into V, weights into U; M is their product. V and M are laid out as `tiles` says, and

    U [strip of Co][36][channel of Ci][vector][lane]   a strip is `Shape.vectors` vectors of Co; the last may have fewer

Threads take one block of tiles after another, and compute it from input to output. A block has as many groups of tiles
as keep V and M in the L2 cache. Tiles are numbered through all images of a batch, so that small images fill all cores.

Feature maps are larger than the caches, and a core that waits for memory computes nothing. So each thread prefetches
the next tiles while it multiplies, and stores bypass the caches, which would have to read the memory first.
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
"""Functions of `source` without training."""
TRAINING_NAMES = (*NAMES, "wgrad3x3", "wgrad5x5", "wgrad_end3x3", "wgrad_end5x5")
"""Functions of `source` with training."""

TASK = (  # fields of a convolution's task, 64 bits each
    "x",  # address of the input's first float
    "weight",  # of U
    "bias",
    "y",
    "skip",  # 0 for none
    "next_block",  # that no thread has taken yet
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
    "masks",  # whether the skip is a mask: the output is 0 where it is not positive, and nothing is added
    "padding",  # rows of zeros above the input
    "non_temporal",  # whether stores bypass the caches; y, y_row and y_image must then be multiples of a cache line
    "inputs",  # vectors of Ci
    "outputs",  # vectors of Co
    "groups",  # of tiles in a block
    "floor",  # float: lower bound of the convolution's results; 0 for ReLU, else minus infinity
    "scale",  # float: factor on the convolution before the skip is added
)


TASKS = {"conv": TASK, "filter": FILTER_TASK, "wgrad": WGRAD_TASK, "wgrad_end": END_TASK}
"""Name of a kernel without its size -> the fields of its task."""


def source(shape: Shape, training: bool) -> str:
    """LLVM IR of all kernels, functions of two addresses: a task, see `TASKS`, and the thread's scratch memory.

    Args:
        shape: vectors and register block.
        training: whether to include the kernels for gradients.
    """
    tiles = _Convolutions(shape, training)
    Filters(tiles)
    if training:
        Wgrad(tiles)
    return str(tiles.module)


def scratch_floats(shape: Shape, inputs: int, outputs: int, groups: int) -> int:
    """Floats of scratch memory that a thread needs, for input channels, output channels and groups of a block."""
    return AREA * (groups * shape.tiles * (inputs + outputs) + inputs + 2 * outputs)


def uses_non_temporal_stores(shape: Shape) -> bool:
    """Whether output can bypass the caches: only if a vector fills a cache line, so with AVX-512. Parts of lines would
    be written to memory one by one."""
    return shape.lanes == CACHE_LINE_FLOATS


EPILOGUES = ("", "skip", "mask")
"""What follows ReLU and scale: nothing, an addition of the skip, or zeros where it is not positive."""


class _Convolutions(Tiles):
    def __init__(self, shape: Shape, masks: bool):
        super().__init__(shape)
        self.store_fence = ir.Function(self.module, ir.FunctionType(VOID, []), "llvm.x86.sse.sfence")
        self.multiply = {vectors: self._multiply(vectors) for vectors in range(1, shape.vectors + 1)}
        for name, (m, r) in KERNELS.items():
            non_temporal = (False, True) if uses_non_temporal_stores(shape) else (False,)
            kinds = itertools.product(EPILOGUES if masks else EPILOGUES[:2], non_temporal)
            outputs = {kind: self._transform_output(name, m, r, *kind) for kind in kinds}
            _ConvolutionKernel(self, name, m, r, outputs)

    def _multiply(self, vectors: int) -> ir.Function:
        """M = V U at one of 36 points, for a block and a strip of so many vectors: a matrix product in register blocks.

        Channels are summed in partial sums of 16, whose rounding errors do not grow with the number of channels (a kind
        of pairwise summation, Higham 1993). This makes the convolution as accurate as a direct one.
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
        """The output transform of one tile, Aᵀ M A, then bias, ReLU, scale and one of `EPILOGUES`."""
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
                        else:  # like PyTorch, a NaN in the mask lets the gradient pass
                            closed = b.fcmp_ordered("<=", other, b.constant(0.0))
                            value = b.select(closed, b.constant(0.0), value)
                    b.put(value, b.at(target, b.mul(column, b.i(k))), non_temporal)
        b.ret_void()
        return function


class _ConvolutionKernel:
    """Builds the convolution of m x m outputs and r x r taps. Attributes are values that its parts share."""

    def __init__(
        self, module: _Convolutions, name: str, m: int, r: int, transform_output: dict[tuple[str, bool], ir.Function]
    ):
        """transform_output: functions by epilogue and by whether stores are non-temporal."""
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
            b.call(module.store_fence, [])  # else other threads might read the output before it is in memory
        b.ret_void()

    def _split_scratch(self, scratch: Value) -> None:
        """Scratch memory is V, M, and a tile each of input, output and skip, for tiles that extend beyond their map."""
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
        """Transforms input tiles into V."""
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
        """Multiplies V and U into M, point by point, and prefetches meanwhile."""
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
        """Prefetches the next block's tiles and this block's skip: one row of a sixth of them at each of 36 points."""
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
            b.call(module.prefetch, [source, b.mul(self.inputs, m)])  # harmless if there is no next block
            with b.if_then(b.and_(self.has_skip, b.icmp_signed("<", line, m))):
                image, top, left = self.grid.corner(b.add(first, i))
                row = b.mul(b.add(top, line), field["skip_row"])
                skip = self._image("skip", image)
                source = b.at(skip, b.add(row, b.mul(left, self.y_pixel)))
                b.call(module.prefetch, [source, b.mul(self.outputs, m)])

    def _write_tiles(self, first: Value, count: Value) -> None:
        """Transforms M into output tiles; those that extend beyond the map are written to `edge_out` first."""
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
            non_temporal = b.and_(self.non_temporal, fits)
            for (epilogue, bypasses), transform in self.transform_output.items():
                chosen = b.and_(self.epilogue_is[epilogue], b.equal(non_temporal, bypasses))
                with b.if_then(chosen):
                    b.call(transform, [*operands, *operands_skip] if epilogue else operands)
            with b.if_then(b.not_(fits)):
                self._copy_out(target, top, left, edge_row)

    def _skip_tile(self, image: Value, top: Value, left: Value, fits: Value, edge_row: Value) -> tuple[Value, Value]:
        """Address and row stride of the skip's tile, which is copied if it extends beyond the map."""
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
        """Copies the part of the tile in `edge_out` that lies in the map."""
        b, field, m = self.b, self.field, self.b.i(self.m)
        rows = b.minimum(m, b.sub(field["y_height"], top))
        columns = b.minimum(m, b.sub(field["width"], left))
        with b.loop(rows, "row") as row, b.loop(b.mul(columns, self.outputs), "vector") as c:
            c = b.mul(c, b.i(self.module.shape.lanes))
            value = b.get(b.at(self.edge_out, b.add(b.mul(row, edge_row), c)))
            b.put(value, b.at(target, b.add(b.mul(row, field["y_row"]), c)))
