"""llvmlite's builder of LLVM IR, with what the kernels are written in: vectors of floats, loops, shared work."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir

F32, I64, PTR, VOID = ir.FloatType(), ir.IntType(64), ir.PointerType(), ir.VoidType()
FLOAT_BYTES = 4
Value = Any  # one of LLVM's; llvmlite's builder does not say what its methods give


class IRBuilder(ir.IRBuilder):
    """llvmlite's builder with loops, and floats at distances counted in floats."""

    def __init__(self, block: ir.Block, vector: ir.VectorType):
        super().__init__(block)
        self.vector = vector

    def i(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def constant(self, value: float, kind: ir.VectorType | None = None) -> ir.Constant:
        """A vector of one value, rounded to fp32; of another kind unrounded."""
        kind = kind or self.vector
        return ir.Constant(kind, [float(np.float32(value)) if kind.element == F32 else float(value)] * kind.count)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x · y + z of vectors: fused where the CPU can, a multiplication and an addition where it cannot."""
        bits = 32 if x.type.element == F32 else 64
        name = f"llvm.fmuladd.v{x.type.count}f{bits}"
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(x.type, [x.type] * 3), name)
        return self.call(function, [x, y, z])

    def at(self, pointer: Value, distance: Value | int) -> Value:
        """The address `error_of` floats on."""
        distance = self.i(distance) if isinstance(distance, int) else distance
        return self.gep(pointer, [distance], source_etype=F32)  # of a tile at an edge it may lie outside its map

    def get(self, pointer: Value) -> Value:
        return self.load(pointer, typ=self.vector, align=FLOAT_BYTES)

    def put(self, value: Value, pointer: Value, non_temporal: bool = False) -> None:
        """non_temporal: the pointer must be a multiple of the vector's size then."""
        if non_temporal:
            stored = self.store(value, pointer, align=self.vector.count * FLOAT_BYTES)
            stored.set_metadata("nontemporal", self.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        else:
            self.store(value, pointer, align=FLOAT_BYTES)

    def splat(self, value: Value) -> Value:
        empty = ir.Constant(self.vector, ir.Undefined)
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.vector.count), [0] * self.vector.count)
        return self.shuffle_vector(self.insert_element(empty, value, ir.Constant(ir.IntType(32), 0)), empty, order)

    def broadcast(self, pointer: Value) -> Value:
        """The float there, in all lanes."""
        return self.splat(self.load(pointer, typ=F32, align=FLOAT_BYTES))

    def equal(self, a: Value, b: bool) -> Value:
        """Whether a truth value is b."""
        return a if b else self.not_(a)

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
        with self.reduction(count, name, 0) as (index, _):
            yield index

    @contextlib.contextmanager
    def reduction(self, count: Value, name: str, sums: int) -> Iterator[tuple[Value, list[Value]]]:
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
            place.add_incoming(self.constant(0.0), before)
            place.add_incoming(value, self.block)
        after = self.append_basic_block(f"after_{name}s")
        self.cbranch(self.icmp_signed("<", following, count), body, after)
        self.position_at_end(after)

    @contextlib.contextmanager
    def shared_loop(self, counter: Value, end: Value) -> Iterator[tuple[Value, Value]]:
        """Its body runs for each number below `end` that this thread is the first to take from the counter.

        Numbers are taken one ahead: the body gets its own and the one it will get next, if that is below `end`.
        """
        take = self.append_basic_block("take")
        work = self.append_basic_block("work")
        done = self.append_basic_block("done")
        first = self.atomic_rmw("add", counter, self.i(1), "monotonic")
        before = self.block
        self.branch(take)
        self.position_at_end(take)
        number = self.phi(I64, "taken")
        self.cbranch(self.icmp_signed("<", number, end), work, done)
        self.position_at_end(work)
        following = self.atomic_rmw("add", counter, self.i(1), "monotonic")
        yield number, following
        number.add_incoming(first, before)
        number.add_incoming(following, self.block)
        self.branch(take)
        self.position_at_end(done)
