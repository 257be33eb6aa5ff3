"""LLVM IR of the gradient of a convolution's weights, in Winograd's domain.

With Y = Aᵀ((G g Gᵀ) ∘ (Bᵀ d B))A the gradient of g is Gᵀ((Σ over tiles of (A dY Aᵀ) ∘ (Bᵀ d B)))G: tiles of the
input become V, as in the convolution; tiles of the output's gradient, m x m pixels, become W at 6 x 6 points; and at
each of the 36 points there is a matrix product over tiles,

    S [36][Co][Ci] = Σ over tiles of W [Co] · V [Ci]

Tiles are summed in chunks, whose number follows from the shape of the maps alone, each by one thread in a fixed order;
then the chunks' sums are added in order and taken back. So the bits do not depend on how many threads there are. Sums
of sums of a block's tiles also keep rounding small.
"""

from llvmlite import ir

from .ir_builder import F32, I64, PTR, Value
from .tiles import AREA, Tiles, field_of
from .transforms import TILE, matrices

ROWS = 4  # channels of Co in a register block, which has them times `Shape.vectors` vectors of Ci

TASK = (  # of wgrad3x3 and wgrad5x5, 64 bits each
    "x",
    "dy",
    "sums",  # address of S, one for each chunk
    "bias_sums",  # [Co] for each chunk: sums of dy
    "next_chunk",  # that nobody has taken
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
    "chunk",  # tiles of a chunk
)

END_TASK = (  # of wgrad_end3x3 and wgrad_end5x5
    "sums",
    "dw",  # address of the gradient, [Co][r][r][Ci]
    "next_output",  # channel that nobody has taken
    "chunks",
    "inputs",  # vectors
    "outputs",
    "scale",  # float
)


class Wgrad:
    """Adds wgrad3x3, wgrad5x5 and what makes the end of each to a module."""

    def __init__(self, tiles: Tiles):
        self._tiles = tiles
        self._accumulate = {vectors: self._product(vectors) for vectors in range(1, tiles.shape.vectors + 1)}
        for r in 3, 5:
            self._kernel(r, self._transform_gradient(r))
            self._end(r)

    def _transform_gradient(self, r: int) -> ir.Function:
        """W of one tile: A dY Aᵀ; and the sum of its pixels, added to `sum`."""
        s, m = self._tiles.shape, TILE - r + 1
        function, b = self._tiles.function(f"transform_gradient{r}x{r}", "dy_ptr row column outputs w_ptr sum_ptr")
        dy, row, column, outputs, w, total = function.args
        a = matrices(m, r)[0].T
        with b.loop(outputs, "vector") as c:
            start = b.at(dy, b.mul(c, b.i(s.lanes)))
            half, sums = [], []
            for k in range(m):
                d = [b.get(b.at(start, b.add(b.mul(row, b.i(i)), b.mul(column, b.i(k))))) for i in range(m)]
                half.append(self._tiles.linear(b, a, d))
                sums += d
            while len(sums) > 1:
                sums = [b.fadd(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
            place = b.at(total, b.mul(c, b.i(s.lanes)))
            b.put(b.fadd(b.get(place), sums[0]), place)
            target = b.at(w, b.mul(c, b.i(AREA * s.tiles * s.lanes)))
            for i in range(TILE):
                for k, value in enumerate(self._tiles.linear(b, a, [half[k][i] for k in range(m)])):
                    b.put(value, b.at(target, (i * TILE + k) * s.tiles * s.lanes))
        b.ret_void()
        return function

    def _product(self, vectors: int) -> ir.Function:
        """S += W V at one point, for a block of tiles, all of Co and so many vectors of Ci. fresh: S is not read."""
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
            with b.summing(groups, "group", ROWS * vectors) as (group, totals):
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

    def _kernel(self, r: int, transform_gradient: ir.Function) -> None:
        tiles_, s, m = self._tiles, self._tiles.shape, TILE - r + 1
        function, b = tiles_.function(f"wgrad{r}x{r}", "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {name: field_of(b, task, name, TASK) for name in TASK if name != "next_chunk"}
        x, dy, all_sums, bias_sums = (b.inttoptr(field[n], PTR) for n in ("x", "dy", "sums", "bias_sums"))
        inputs, outputs = field["inputs"], field["outputs"]
        pixel, dy_pixel = b.mul(inputs, b.i(s.lanes)), b.mul(outputs, b.i(s.lanes))
        across, down = b.cdiv(field["width"], b.i(m)), b.cdiv(field["dy_height"], b.i(m))
        each = b.mul(across, down)
        tiles = b.mul(each, field["images"])
        length = b.mul(field["groups"], b.i(s.tiles))
        v_group, w_group = (b.mul(vectors, b.i(AREA * s.tiles * s.lanes)) for vectors in (inputs, outputs))
        v = scratch
        w = b.at(v, b.mul(field["groups"], v_group))
        edge_in = b.at(w, b.mul(field["groups"], w_group))
        edge_dy = b.at(edge_in, b.mul(pixel, b.i(AREA)))
        block_bias = b.at(edge_dy, b.mul(dy_pixel, b.i(AREA)))

        def corner(tile: Value) -> tuple[Value, Value, Value]:
            image, place = b.udiv(tile, each), b.urem(tile, each)
            return image, b.mul(b.udiv(place, across), b.i(m)), b.mul(b.urem(place, across), b.i(m))

        def group_at(start: Value, group: Value, place: Value) -> Value:
            start = b.at(start, b.mul(b.udiv(place, b.i(s.tiles)), group))
            return b.at(start, b.mul(b.urem(place, b.i(s.tiles)), b.i(s.lanes)))

        counter = b.gep(task, [b.i(TASK.index("next_chunk"))], source_etype=I64)
        with b.taken(counter, b.cdiv(tiles, field["chunk"])) as (chunk, _):
            begin = b.mul(chunk, field["chunk"])
            end = b.minimum(b.add(begin, field["chunk"]), tiles)
            sums = b.at(all_sums, b.mul(b.mul(chunk, b.i(AREA)), b.mul(pixel, dy_pixel)))
            bias = b.at(bias_sums, b.mul(chunk, dy_pixel))
            with b.loop(outputs, "vector") as c:
                b.put(b.number(0.0), b.at(bias, b.mul(c, b.i(s.lanes))))
            with b.loop(b.cdiv(b.sub(end, begin), length), "block") as block:
                first = b.add(begin, b.mul(block, length))
                count = b.minimum(b.sub(end, first), length)
                groups = b.cdiv(count, b.i(s.tiles))
                with b.loop(outputs, "vector") as c:
                    b.put(b.number(0.0), b.at(block_bias, b.mul(c, b.i(s.lanes))))

                # Tiles in: V and W, zeros in what is left of the last group.
                with b.loop(b.mul(groups, b.i(s.tiles)), "tile") as i:
                    image, top, left = corner(b.add(first, i))
                    nowhere = b.add(b.add(field["height"], field["dy_height"]), field["padding"])
                    top = b.select(b.icmp_signed("<", i, count), top, nowhere)
                    here = b.at(dy, b.mul(image, field["dy_image"]))
                    size = field["dy_height"], field["width"]
                    source, row = tiles_.window(b, here, field["dy_row"], (top, left), size, outputs, m, edge_dy)
                    operands = [source, row, dy_pixel, outputs, group_at(w, w_group, i), block_bias]
                    b.call(transform_gradient, operands)

                    place = b.sub(top, field["padding"]), b.sub(left, b.i(r // 2))
                    here, size = b.at(x, b.mul(image, field["x_image"])), (field["height"], field["width"])
                    source, row = tiles_.window(b, here, field["x_row"], place, size, inputs, TILE, edge_in)
                    b.call(tiles_.transform_input, [source, row, pixel, inputs, group_at(v, v_group, i)])

                fresh = b.zext(b.icmp_signed("==", block, b.i(0)), I64)
                with b.loop(b.i(AREA), "point") as point:
                    self._ask_for_next(b, field, point, b.add(first, length), end, corner, x, dy, m)
                    full, rest = b.udiv(inputs, b.i(s.vectors)), b.urem(inputs, b.i(s.vectors))
                    for vectors, accumulate in self._accumulate.items():
                        # The last strip has the rest of the vectors, those before it all that a strip can have.
                        whole = vectors == s.vectors
                        strips = full if whole else b.zext(b.icmp_signed("==", rest, b.i(vectors)), I64)
                        before = b.i(0) if whole else full
                        with b.if_then(b.icmp_signed(">", strips, b.i(0))), b.loop(strips, "strip") as strip:
                            start = b.mul(b.add(before, strip), b.i(s.vectors * s.lanes))
                            operands = [b.at(v, b.mul(start, b.i(AREA * s.tiles))), w, b.at(sums, start)]
                            b.call(accumulate, [*operands, point, inputs, outputs, groups, fresh])
                with b.loop(outputs, "vector") as c:
                    place, part = (b.at(start, b.mul(c, b.i(s.lanes))) for start in (bias, block_bias))
                    b.put(b.fadd(b.get(place), b.get(part)), place)
        b.ret_void()

    def _ask_for_next(self, b, field, point, first, end, corner, x, dy, m) -> None:
        """Asks for one row of a sixth of the next block's tiles, at each of the 36 points another."""
        s = self._tiles.shape
        length = b.mul(field["groups"], b.i(s.tiles))
        count = b.minimum(b.sub(end, first), length)
        part, line = b.udiv(point, b.i(TILE)), b.urem(point, b.i(TILE))
        begin = b.sdiv(b.mul(part, count), b.i(TILE))
        number = b.sub(b.sdiv(b.mul(b.add(part, b.i(1)), count), b.i(TILE)), begin)
        with b.if_then(b.icmp_signed(">", number, b.i(0))), b.loop(number, "tile") as i:
            image, top, left = corner(b.add(first, b.add(begin, i)))
            for map_, name, vectors in ((x, "x", field["inputs"]), (dy, "dy", field["outputs"])):
                row = b.mul(b.add(top, line), field[f"{name}_row"])
                place = b.add(row, b.mul(left, b.mul(vectors, b.i(s.lanes))))
                source = b.at(b.at(map_, b.mul(image, field[f"{name}_image"])), place)
                b.call(self._tiles.ask_for, [source, b.mul(vectors, b.i(m))])

    def _end(self, r: int) -> None:
        """Gᵀ S G of the chunks' sum, times scale."""
        s = self._tiles.shape
        function, b = self._tiles.function(f"wgrad_end{r}x{r}", "task_ptr scratch_ptr", internal=False)
        task, scratch = function.args
        field = {n: field_of(b, task, n, END_TASK) for n in END_TASK if n not in ("next_output", "scale")}
        scale = b.splat(field_of(b, task, "scale", END_TASK, F32))
        sums, dw = b.inttoptr(field["sums"], PTR), b.inttoptr(field["dw"], PTR)
        inputs = b.mul(field["inputs"], b.i(s.lanes))
        outputs = b.mul(field["outputs"], b.i(s.lanes))
        one = b.mul(inputs, outputs)
        gt = matrices(TILE - r + 1, r)[1].T
        counter = b.gep(task, [b.i(END_TASK.index("next_output"))], source_etype=I64)
        with b.taken(counter, outputs) as (channel, _), b.loop(field["inputs"], "vector") as c:
            c = b.mul(c, b.i(s.lanes))
            first = b.at(sums, b.add(b.mul(channel, inputs), c))
            with b.loop(b.i(AREA), "point") as point:
                start = b.at(first, b.mul(point, one))
                with b.summing(field["chunks"], "chunk", 1) as (chunk, totals):
                    part = b.get(b.at(start, b.mul(chunk, b.mul(one, b.i(AREA)))))
                    totals[0] = b.fadd(totals[0], part)
                b.put(totals[0], b.at(scratch, b.mul(point, b.i(s.lanes))))
            half = []
            for k in range(TILE):
                column = [b.get(b.at(scratch, (i * TILE + k) * s.lanes)) for i in range(TILE)]
                half.append(self._tiles.linear(b, gt, column))
            target = b.at(dw, b.add(b.mul(b.mul(channel, inputs), b.i(r * r)), c))
            for i in range(r):
                for k, value in enumerate(self._tiles.linear(b, gt, [half[k][i] for k in range(TILE)])):
                    b.put(b.fmul(value, scale), b.at(target, b.mul(inputs, b.i(i * r + k))))
        b.ret_void()
