"""LLVM IR of the filter transform, U = G g Gᵀ, computed in fp64 and rounded once.

Training transforms filters at every step. The gradient of a convolution's input needs them rotated by 180 degrees, with
inputs and outputs exchanged: the strides of the task express both.
"""

from llvmlite import ir

from .ir_builder import F32, FLOAT_BYTES, PTR
from .tiles import AREA, Tiles, load_field
from .transforms import TILE, matrices

TASK = (  # 64 bits each
    "weight",  # address of the first tap
    "u",
    "next_input",  # channel that no thread has taken yet
    "inputs",  # channels
    "outputs",  # vectors of channels
    "input",  # floats from one input channel to the next
    "output",
    "row",  # from one row of taps to the next
    "column",
)


class Filters:
    """Adds filter3x3 and filter5x5 to a module."""

    def __init__(self, tiles: Tiles):
        self._tiles = tiles
        for r in 3, 5:
            self._add_kernel(r)

    def _add_kernel(self, r: int) -> None:
        s = self._tiles.shape
        function, b = self._tiles.function(f"filter{r}x{r}", "task_ptr scratch_ptr", internal=False)
        task = function.args[0]
        field = {name: load_field(b, task, name, TASK) for name in TASK if name != "next_input"}
        weight, u = (b.inttoptr(field[name], PTR) for name in ("weight", "u"))
        inputs, outputs = field["inputs"], field["outputs"]
        g = matrices(TILE - r + 1, r)[1]
        wide = ir.VectorType(ir.DoubleType(), s.lanes)
        counter = b.gep(task, [b.i(TASK.index("next_input"))], source_etype=field["inputs"].type)
        with b.shared_loop(counter, inputs) as (channel, _), b.loop(outputs, "vector") as vector:
            first = b.mul(b.mul(vector, b.i(s.lanes)), field["output"])
            first = b.at(weight, b.add(b.mul(channel, field["input"]), first))
            half = []  # columns of G g
            for k in range(r):
                taps = []
                for i in range(r):
                    tap = b.at(first, b.add(b.mul(field["row"], b.i(i)), b.mul(field["column"], b.i(k))))
                    values = ir.Constant(self._tiles.vector, ir.Undefined)
                    for lane in range(s.lanes):
                        value = b.load(b.at(tap, b.mul(field["output"], b.i(lane))), typ=F32, align=FLOAT_BYTES)
                        values = b.insert_element(values, value, ir.Constant(ir.IntType(32), lane))
                    taps.append(b.fpext(values, wide))
                half.append(self._tiles.apply_matrix(b, g, taps))
            # The strip that this vector is in, the strip's width, and the vector's place in it.
            strip, place = b.udiv(vector, b.i(s.vectors)), b.urem(vector, b.i(s.vectors))
            start = b.mul(strip, b.i(s.vectors))
            width = b.mul(b.minimum(b.sub(outputs, start), b.i(s.vectors)), b.i(s.lanes))
            target = b.at(u, b.mul(b.mul(start, b.i(s.lanes * AREA)), inputs))
            target = b.at(target, b.add(b.mul(channel, width), b.mul(place, b.i(s.lanes))))
            step = b.mul(inputs, width)
            for i in range(TILE):
                for k, value in enumerate(self._tiles.apply_matrix(b, g, [half[column][i] for column in range(r)])):
                    point = b.at(target, b.mul(step, b.i(i * TILE + k)))
                    b.put(b.fptrunc(value, self._tiles.vector), point)
        b.ret_void()
