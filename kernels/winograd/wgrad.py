"""LLVM IR of the gradient of a convolution's weights, in Winograd's domain.

With Y = Aᵀ((G g Gᵀ) ∘ (Bᵀ d B))A the gradient of g is Gᵀ((Σ over tiles of (A dY Aᵀ) ∘ (Bᵀ d B)))G. Input tiles are
transformed into V, as in the convolution; tiles of the output's gradient, m x m pixels, into W at 6 x 6 points. At each
of the 36 points there is a matrix product over tiles,

    S [36][Co][Ci] = Σ over tiles of W [Co] · V [Ci]

The sum over tiles is split (split-K) in a way that depends on the shape of the maps alone. One thread computes each
split, in a fixed order; then the splits are added in order and transformed back. So the number of threads changes no
bit of the result. Each block of tiles is summed separately, which also keeps rounding errors small.
"""

from llvmlite import ir

from .ir_builder import F32, I64, PTR, Value
from .tiles import AREA, TileGrid, Tiles, load_field
from .transforms import TILE, matrices

ROWS = 4  # channels of Co in a register block; its columns are `Shape.vectors` vectors of Ci

TASK = (  # of wgrad3x3 and wgrad5x5, 64 bits each
    "x",
    "dy",
    "sums",  # address of S, one for each split
    "bias_sums",  # sums of dy, [Co] for each split
    "next_split",  # that no thread has taken yet
    "images",
    "height",
    "width",
    "x_row",
    "x_image",
    "dy_height",
    "dy_row",
    "dy_image",
    "padding",
    "inputs",  # vectors
    "outputs",
    "groups",  # of tiles in a block
    "tiles_per_split",
)

END_TASK = (  # of wgrad_end3x3 and wgrad_end5x5
    "sums",
    "dw",  # address of the gradient, [Co][r][r][Ci]
    "next_output",  # channel that no thread has taken yet
    "splits",
    "inputs",  # vectors
    "outputs",
    "scale",  # float
)


class Wgrad:
    """Adds wgrad3x3 and wgrad5x5 to a module, and the kernels that finish them, wgrad_end3x3 and wgrad_end5x5."""

    def __init__(self, tiles: Tiles):
        self._tiles = tiles
        self._accumulate = {vectors: self._accumulate_product(vectors) for vectors in range(1, tiles.shape.vectors + 1)}
        for r in 3, 5:
            _WgradKernel(tiles, r, self._transform_gradient(r), self._accumulate)
            self._add_end(r)

    def _transform_gradient(self, r: int) -> ir.Function:
        """The transform of one tile of the gradient, W = A dY Aᵀ; the sum of its pixels is added to `sum`."""
        s, m = self._tiles.shape, TILE - r + 1
        function, b = self._tiles.function(f"transform_gradient{r}x{r}", "dy_ptr row column outputs w_ptr sum_ptr")
        dy, row, column, outputs, w, total = function.args
        a = matrices(m, r)[0].T
        with b.loop(outputs, "vector") as c:
            start = b.at(dy, b.mul(c, b.i(s.lanes)))
            half, sums = [], []
            for k in range(m):
                d = [b.get(b.at(start, b.add(b.mul(row, b.i(i)), b.mul(column, b.i(k))))) for i in range(m)]
                half.append(self._tiles.apply_matrix(b, a, d))
                sums += d
            while len(sums) > 1:
                sums = [b.fadd(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
            place = b.at(total, b.mul(c, b.i(s.lanes)))
            b.put(b.fadd(b.get(place), sums[0]), place)
            target = b.at(w, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            for i in range(TILE):
                for k, value in enumerate(self._tiles.apply_matrix(b, a, [half[k][i] for k in range(m)])):
                    b.put(value, b.at(target, (i * TILE + k) * s.tiles * s.lanes))
        b.ret_void()
        return function

    def _accumulate_product(self, vectors: int) -> ir.Function:
        """S += W V at one point, for a block of tiles, all of Co and so many vectors of Ci; S = W V if `fresh`."""
        s = self._tiles.shape
        arguments = "v_ptr w_ptr sums_ptr p inputs outputs groups fresh"
        function, b = self._tiles.function(f"accumulate_{vectors}", arguments)
        v, w, sums, p, inputs, outputs, groups, fresh = function.args
        plane = s.tiles * s.lanes
        fresh = b.icmp_signed("!=", fresh, b.i(0))
        v = b.at(v, b.mul(p, b.i(plane)))
        v_group, w_group = (b.mul(vectors_, b.i(AREA * plane)) for vectors_ in (inputs, outputs))
        with b.loop(b.mul(outputs, b.i(s.lanes // ROWS)), "row") as quad:
            channel = b.mul(quad, b.i(ROWS))
            vector, lane = b.udiv(channel, b.i(s.lanes)), b.urem(channel, b.i(s.lanes))
            left = b.at(w, b.add(b.mul(b.add(b.mul(vector, b.i(AREA)), p), b.i(plane)), lane))
            with b.reduction(groups, "group", ROWS * vectors) as (group, totals):
                here_v, here_w = b.at(v, b.mul(group, v_group)), b.at(left, b.mul(group, w_group))
                for tile in range(s.tiles):
                    row = [b.get(b.at(here_v, j * AREA * plane + tile * s.lanes)) for j in range(vectors)]
                    for i in range(ROWS):
                        value = b.broadcast(b.at(here_w, tile * s.lanes + i))
                        for j in range(vectors):
                            totals[i * vectors + j] = b.fma(value, row[j], totals[i * vectors + j])
            target = b.mul(b.add(b.mul(p, b.mul(outputs, b.i(s.lanes))), channel), b.mul(inputs, b.i(s.lanes)))
            for i in range(ROWS):
                row_start = b.at(sums, b.add(target, b.mul(inputs, b.i(i * s.lanes))))
                for j in range(vectors):
                    place = b.at(row_start, j * s.lanes)
                    total = totals[i * vectors + j]
                    b.put(b.select(fresh, total, b.fadd(total, b.get(place))), place)
        b.ret_void()
        return function

    def _add_end(self, r: int) -> None:
        """Adds the splits up to S and transforms it back: scale · Gᵀ S G."""
        s = self._tiles.shape
        function, b = self._tiles.function(f"wgrad_end{r}x{r}", "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {n: load_field(b, task, n, END_TASK) for n in END_TASK if n not in ("next_output", "scale")}
        scale = b.splat(load_field(b, task, "scale", END_TASK, F32))
        sums, dw = b.inttoptr(field["sums"], PTR), b.inttoptr(field["dw"], PTR)
        inputs = b.mul(field["inputs"], b.i(s.lanes))
        outputs = b.mul(field["outputs"], b.i(s.lanes))
        one = b.mul(inputs, outputs)
        gt = matrices(TILE - r + 1, r)[1].T
        counter = b.gep(task, [b.i(END_TASK.index("next_output"))], source_etype=I64)
        with b.shared_loop(counter, outputs) as (channel, _), b.loop(field["inputs"], "vector") as c:
            c = b.mul(c, b.i(s.lanes))
            first = b.at(sums, b.add(b.mul(channel, inputs), c))
            with b.loop(b.i(AREA), "point") as point:
                start = b.at(first, b.mul(point, one))
                with b.reduction(field["splits"], "split", 1) as (split, totals):
                    part = b.get(b.at(start, b.mul(split, b.mul(one, b.i(AREA)))))
                    totals[0] = b.fadd(totals[0], part)
                b.put(totals[0], b.at(scratch, b.mul(point, b.i(s.lanes))))
            half = []
            for k in range(TILE):
                column = [b.get(b.at(scratch, (i * TILE + k) * s.lanes)) for i in range(TILE)]
                half.append(self._tiles.apply_matrix(b, gt, column))
            target = b.at(dw, b.add(b.mul(b.mul(channel, inputs), b.i(r * r)), c))
            for i in range(r):
                for k, value in enumerate(self._tiles.apply_matrix(b, gt, [half[k][i] for k in range(TILE)])):
                    b.put(b.fmul(value, scale), b.at(target, b.mul(inputs, b.i(i * r + k))))
        b.ret_void()


class _WgradKernel:
    """Builds the kernel that sums the tiles of splits, for r x r taps. Attributes are values that its parts share."""

    def __init__(self, tiles: Tiles, r: int, transform_gradient: ir.Function, accumulate: dict[int, ir.Function]):
        self.module, self.r, self.m = tiles, r, TILE - r + 1
        self.transform_gradient, self.accumulate = transform_gradient, accumulate
        s = tiles.shape
        function, b = tiles.function(f"wgrad{r}x{r}", "task_ptr scratch_ptr", internal=False)
        self.b, (task, scratch) = b, function.args
        self.field = {name: load_field(b, task, name, TASK) for name in TASK if name != "next_split"}
        self.x, self.dy, all_sums, bias_sums = (
            b.inttoptr(self.field[n], PTR) for n in ("x", "dy", "sums", "bias_sums")
        )
        self.inputs, self.outputs = self.field["inputs"], self.field["outputs"]
        self.pixel, self.dy_pixel = b.mul(self.inputs, b.i(s.lanes)), b.mul(self.outputs, b.i(s.lanes))
        self.grid = TileGrid(b, self.field["dy_height"], self.field["width"], self.field["images"], self.m)
        self.length = b.mul(self.field["groups"], b.i(s.tiles))  # tiles of a block
        self._split_scratch(scratch)

        counter = b.gep(task, [b.i(TASK.index("next_split"))], source_etype=I64)
        with b.shared_loop(counter, b.cdiv(self.grid.tiles, self.field["tiles_per_split"])) as (split, _):
            begin = b.mul(split, self.field["tiles_per_split"])
            end = b.minimum(b.add(begin, self.field["tiles_per_split"]), self.grid.tiles)
            sums = b.at(all_sums, b.mul(b.mul(split, b.i(AREA)), b.mul(self.pixel, self.dy_pixel)))
            bias = b.at(bias_sums, b.mul(split, self.dy_pixel))
            self._clear(bias)
            with b.loop(b.cdiv(b.sub(end, begin), self.length), "block") as block:
                first = b.add(begin, b.mul(block, self.length))
                count = b.minimum(b.sub(end, first), self.length)
                groups = b.cdiv(count, b.i(s.tiles))
                self._clear(self.block_bias)
                self._transform_tiles(first, count, groups)
                fresh = b.zext(b.icmp_signed("==", block, b.i(0)), I64)
                self._multiply(sums, first, end, groups, fresh)
                with b.loop(self.outputs, "vector") as c:
                    place, part = (b.at(start, b.mul(c, b.i(s.lanes))) for start in (bias, self.block_bias))
                    b.put(b.fadd(b.get(place), b.get(part)), place)
        b.ret_void()

    def _split_scratch(self, scratch: Value) -> None:
        """Scratch memory is V, W, a tile each of input and gradient, for tiles that extend beyond their map, and the
        sums of dy in a block."""
        b, s = self.b, self.module.shape
        self.v_group, self.w_group = (
            b.mul(vectors, b.i(AREA * s.tiles * s.lanes)) for vectors in (self.inputs, self.outputs)
        )
        self.v = scratch
        self.w = b.at(self.v, b.mul(self.field["groups"], self.v_group))
        self.edge_in = b.at(self.w, b.mul(self.field["groups"], self.w_group))
        self.edge_dy = b.at(self.edge_in, b.mul(self.pixel, b.i(AREA)))
        self.block_bias = b.at(self.edge_dy, b.mul(self.dy_pixel, b.i(AREA)))

    def _clear(self, sums: Value) -> None:
        """Stores zeros for all output channels."""
        b = self.b
        with b.loop(self.outputs, "vector") as c:
            b.put(b.constant(0.0), b.at(sums, b.mul(c, b.i(self.module.shape.lanes))))

    def _transform_tiles(self, first: Value, count: Value, groups: Value) -> None:
        """Transforms tiles into V and W. Unused places of the last group get zeros."""
        b, field, module = self.b, self.field, self.module
        with b.loop(b.mul(groups, b.i(module.shape.tiles)), "tile") as i:
            image, top, left = self.grid.corner(b.add(first, i))
            nowhere = b.add(b.add(field["height"], field["dy_height"]), field["padding"])
            top = b.select(b.icmp_signed("<", i, count), top, nowhere)
            dy = b.at(self.dy, b.mul(image, field["dy_image"]))
            place, size = (top, left), (field["dy_height"], field["width"])
            source, row = module.window(b, dy, field["dy_row"], place, size, self.outputs, self.m, self.edge_dy)
            target = module.tile_address(b, self.w, self.w_group, i)
            b.call(self.transform_gradient, [source, row, self.dy_pixel, self.outputs, target, self.block_bias])

            place = b.sub(top, field["padding"]), b.sub(left, b.i(self.r // 2))
            x, size = b.at(self.x, b.mul(image, field["x_image"])), (field["height"], field["width"])
            source, row = module.window(b, x, field["x_row"], place, size, self.inputs, TILE, self.edge_in)
            target = module.tile_address(b, self.v, self.v_group, i)
            b.call(module.transform_input, [source, row, self.pixel, self.inputs, target])

    def _multiply(self, sums: Value, first: Value, end: Value, groups: Value, fresh: Value) -> None:
        """Adds W times V to S, point by point, and prefetches meanwhile."""
        b, s = self.b, self.module.shape
        with b.loop(b.i(AREA), "point") as point:
            self._prefetch_next(point, b.add(first, self.length), end)
            full, rest = b.udiv(self.inputs, b.i(s.vectors)), b.urem(self.inputs, b.i(s.vectors))
            for vectors, start in self.module.strips(b, full, rest):
                operands = [b.at(self.v, b.mul(start, b.i(AREA * s.tiles))), self.w, b.at(sums, start)]
                b.call(self.accumulate[vectors], [*operands, point, self.inputs, self.outputs, groups, fresh])

    def _prefetch_next(self, point: Value, first: Value, end: Value) -> None:
        """Prefetches the next block's tiles: of a sixth of them one row, at each of the 36 points."""
        b, s, field = self.b, self.module.shape, self.field
        length = b.mul(field["groups"], b.i(s.tiles))
        count = b.minimum(b.sub(end, first), length)
        part, line = b.udiv(point, b.i(TILE)), b.urem(point, b.i(TILE))
        begin = b.sdiv(b.mul(part, count), b.i(TILE))
        number = b.sub(b.sdiv(b.mul(b.add(part, b.i(1)), count), b.i(TILE)), begin)
        with b.if_then(b.icmp_signed(">", number, b.i(0))), b.loop(number, "tile") as i:
            image, top, left = self.grid.corner(b.add(first, b.add(begin, i)))
            for map_, name, vectors in ((self.x, "x", self.inputs), (self.dy, "dy", self.outputs)):
                row = b.mul(b.add(top, line), field[f"{name}_row"])
                place = b.add(row, b.mul(left, b.mul(vectors, b.i(s.lanes))))
                source = b.at(b.at(map_, b.mul(image, field[f"{name}_image"])), place)
                b.call(self.module.prefetch, [source, b.mul(vectors, b.i(self.m))])
