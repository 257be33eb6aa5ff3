"""llvmlite's builder of LLVM IR, extended by vectors of floats, loops, and loops shared between threads."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir

F32, I64, PTR, VOID = ir.FloatType(), ir.IntType(64), ir.PointerType(), ir.VoidType()
FLOAT_BYTES = 4
Value = Any  # an LLVM value; llvmlite's methods have no return types


class IRBuilder(ir.IRBuilder):
    """Builds functions on vectors of floats. Offsets and strides are counted in floats."""

    def __init__(self, block: ir.Block, vector: ir.VectorType):
        super().__init__(block)
        self.vector = vector

    def i(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def constant(self, value: float, kind: ir.VectorType | None = None) -> ir.Constant:
        """A vector with one value in all lanes, rounded to fp32 unless the vector type has other elements."""
        kind = kind or self.vector
        return ir.Constant(kind, [float(np.float32(value)) if kind.element == F32 else float(value)] * kind.count)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a · b + c of vectors: fused if the CPU can do so, else a multiplication and an addition."""
        bits = 32 if a.type.element == F32 else 64
        name = f"llvm.fmuladd.v{a.type.count}f{bits}"
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(a.type, [a.type] * 3), name)
        return self.call(function, [a, b, c])

    def at(self, pointer: Value, distance: Value | int) -> Value:
        """The address that is `distance` floats further on."""
        distance = self.i(distance) if isinstance(distance, int) else distance
        return self.gep(pointer, [distance], source_etype=F32)  # not inbounds: tiles at edges begin outside their map

    def get(self, pointer: Value) -> Value:
        return self.load(pointer, typ=self.vector, align=FLOAT_BYTES)

    def put(self, value: Value, pointer: Value, non_temporal: bool = False) -> None:
        """Stores a vector. A non-temporal store bypasses the caches; its address must be a multiple of its size."""
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
        """Whether a boolean value of the program is b."""
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
        """Repeats the code built inside for index 0 .. count - 1; count must be at least 1."""
        with self.reduction(count, name, 0) as (index, _):
            yield index

    @contextlib.contextmanager
    def reduction(self, count: Value, name: str, sums: int) -> Iterator[tuple[Value, list[Value]]]:
        """A loop with running sums, vectors that start at zero.

        Args:
            count: of repetitions, at least 1.
            name: of the index, for blocks and values of the IR.
            sums: how many.

        Yields:
            The index, and the list of sums. The body replaces its elements; after the loop they are the totals.
        """
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
        """A loop whose numbers threads share: each is taken by one thread, by an atomic increment of the counter.

        Args:
            counter: address of the next number, 64 bits.
            end: the loop is over when a number is not below it.

        Yields:
            The number, and the one that this thread has taken for the next repetition, if that is below `end`.
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
