"""Runs Gluon kernels for Hopper on the CPU: the same source, one block of threads after another, in torch.

Triton's own interpreter does not know Gluon. This one knows what the kernels of this project use of it, and is strict
where a GPU silently goes wrong or hangs:

- Shared memory is modelled to the byte and full of NaN at first. TMA and wgmma swizzle by absolute address, ordinary
  loads and stores relative to their view, as the compiled code does: mixed up, they yield wrong data.
- The parts of a block run as threads, one at a time, and hand over to each other at random wherever they meet the
  outside: a schedule is drawn from a seed, can be repeated, and favors some parts over others by far.
- Copies by TMA complete in any order, at any time. wgmma reads its operands when issued. Or, `lazy`, both wgmma and
  stores by TMA read shared memory only when they are waited for.
- wgmma and TMA find and leave NaN where an ordinary store has not been followed by a fence.
- Where nobody can go on, `Deadlock` is raised. So is `KernelFault` for what must not happen: a part that arrives
  twice in one phase of a barrier, copies that outlive the block, accesses outside of an allocation.

Not modelled: the threads inside a part (Triton puts barriers between them), registers, the number of warps, 32-bit
overflow, and what exactly the compiler makes of the source.
"""

import builtins
import contextlib
import inspect
import random
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia import hopper
from triton.runtime.jit import JITFunction

CAPACITY = 232448  # bytes of shared memory a block may have on Hopper
WORD = 2  # bytes; shared memory is modelled in elements of fp16 or bf16
NAN = -1  # both bytes 0xff: NaN in fp16 and in bf16


class Deadlock(Exception):
    """Every part of the block waits, and no copy is under way."""


class KernelFault(Exception):
    """Something that no kernel may do."""


class _Stopped(Exception):
    """Ends a part whose block has failed elsewhere."""


# One block of threads: its parts, its shared memory, its copies under way.


def _always() -> bool:
    return True


class _Part:
    """A partition of the block's warps: a thread that runs only when it is its turn."""

    def __init__(self, number: int, weight: float):
        self.number = number
        self.weight = weight  # how readily the schedule picks it
        self.ready: Callable[[], bool] = _always
        self.turn = threading.Semaphore(0)
        self.products: list[_Product] = []  # issued, not yet waited for
        self.stores: list[_Copy] = []  # issued, not yet waited for

    def check_finished(self) -> None:
        if self.products or not all(copy.done for copy in self.stores):
            raise KernelFault("a part ends before what it started has been waited for")


@dataclass(eq=False)
class _Copy:
    """A copy by TMA that has been issued."""

    run: Callable[[], None]
    weight: float  # how readily the schedule completes it
    done: bool = False


@dataclass(eq=False)
class _Barrier:
    count: int
    pending: int
    bytes: int = 0
    phase: int = 0
    arrived: set[int] = field(default_factory=set)

    def expect(self, count: int, bytes: int, part: int | None) -> None:
        """count arrivals of a part, and bytes to come (or, negative, that have come)."""
        if count and part in self.arrived:
            raise KernelFault(f"part {part} arrives twice in one phase of a barrier for {self.count}")
        if count:
            self.arrived.add(part)
        self.pending -= count
        self.bytes += bytes
        if self.pending < 0 or self.bytes < 0:
            raise KernelFault("more arrives at a barrier than it was told to expect")
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count
            self.arrived.clear()


class _Block:
    def __init__(self, program: int, programs: int, seed: str, lazy: bool):
        self.program, self.programs, self.lazy = program, programs, lazy
        self.random = random.Random(seed)
        self.words = torch.full((CAPACITY // WORD,), NAN, dtype=torch.int16)
        self.unfenced = torch.zeros(CAPACITY // WORD, dtype=torch.int8)  # number of the part that stored, or 0
        self.allocated = 0  # bytes
        self.barriers: dict[int, _Barrier] = {}
        self.copies: list[_Copy] = []
        self.failure: BaseException | None = None
        self.current = _Part(1, 1.0)
        self.parts = [self.current]
        self.numbers = 1

    def weight(self, least: float) -> float:
        return 10 ** self.random.uniform(least, 0)

    def step(self, ready: Callable[[], bool] = _always) -> None:
        """Lets the others run at random, and goes on once it is `ready` and picked."""
        me = self.current
        me.ready = ready
        self._hand_over(me)
        me.ready = _always

    def _hand_over(self, me: _Part | None) -> None:
        try:
            chosen = self._choose()
        except BaseException as error:
            self.failure = self.failure or error
            self._stop()
            raise _Stopped from None
        if chosen is me:
            return
        self.current = chosen
        chosen.turn.release()
        if me is not None:
            self._wait_turn(me)

    def _choose(self) -> _Part:
        while True:
            choices = [part for part in self.parts if part.ready()] + self.copies
            if not choices:
                raise Deadlock(f"{len(self.parts)} parts of block {self.program} wait for each other")
            chosen = self.random.choices(choices, [choice.weight for choice in choices])[0]
            if isinstance(chosen, _Part):
                return chosen
            self.finish(chosen)

    def finish(self, copy: _Copy) -> None:
        if not copy.done:
            copy.done = True
            copy.run()
        if copy in self.copies:
            self.copies.remove(copy)

    def _wait_turn(self, me: _Part) -> None:
        me.turn.acquire()
        if self.failure is not None:
            raise _Stopped
        self.current = me

    def _stop(self) -> None:
        for part in self.parts:
            part.turn.release()

    def split(self, functions: Sequence[tuple[Callable, tuple]]) -> None:
        """Runs functions side by side and returns when all have."""
        me = self.current
        threads = []
        for function, arguments in functions:
            self.numbers += 1
            part = _Part(self.numbers, self.weight(-2))
            self.parts.append(part)
            threads.append(threading.Thread(target=self._run, args=(part, function, arguments), daemon=True))
        for thread in threads:
            thread.start()
        with contextlib.suppress(_Stopped):
            self.step(lambda: self.parts == [me])
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self, part: _Part, function: Callable, arguments: tuple) -> None:
        try:
            self._wait_turn(part)
            function(*arguments)
            part.check_finished()
            self.parts.remove(part)
            self._hand_over(None)
        except _Stopped:
            pass
        except BaseException as error:
            self.failure = self.failure or error
            self._stop()


_block: _Block  # the one that runs


# Shared memory.


def _swizzle(words: Tensor) -> Tensor:
    """128-byte swizzle of addresses in words: bits 4 to 6 of the byte address are flipped by bits 7 to 9."""
    return words ^ (((words >> 6) & 7) << 3)


@dataclass(frozen=True)
class _Memory:
    """A view of shared memory. shape: before `order` permutes it."""

    start: int  # byte
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: Any
    order: tuple[int, ...] | None = None

    def index(self, i: int) -> "_Memory":
        if not 0 <= i < self.shape[0]:
            raise KernelFault(f"index {i} of {self.shape}")
        inner = self.shape[1:]
        return _Memory(self.start + i * torch.Size(inner).numel() * self.dtype.itemsize, self.dtype, inner, self.layout)

    def _reinterpret(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> "_Memory":
        return _Memory(self.start, dtype, tuple(shape), layout)

    def permute(self, order: Sequence[int]) -> "_Memory":
        return _Memory(self.start, self.dtype, self.shape, self.layout, tuple(order))

    def _words(self, absolute: bool) -> Tensor:
        """Address of every element, in words. absolute: swizzled as TMA and wgmma do."""
        columns = self.shape[-1]
        if self.layout.swizzle_byte_width != 128 or columns * WORD != 128 or self.dtype.itemsize != WORD:
            raise KernelFault(f"{self.layout} of {columns} columns is not modelled")
        linear = torch.arange(torch.Size(self.shape).numel()).view(self.shape)
        first = self.start // WORD
        words = _swizzle(first + linear) if absolute else first + _swizzle(linear)
        if int(words.max()) >= _block.allocated // WORD:
            raise KernelFault("a view reaches beyond what is allocated")
        return words

    def read(self, absolute: bool) -> Tensor:
        words = self._words(absolute)
        values = _block.words[words]
        if absolute:
            values = torch.where(_block.unfenced[words] == 0, values, NAN)
        values = values.view(self.dtype)
        return values if self.order is None else values.permute(self.order)

    def write(self, values: Tensor, absolute: bool) -> None:
        if self.order is not None:
            values = values.permute(sorted(range(len(self.order)), key=self.order.__getitem__))
        if values.shape != self.shape or values.dtype != self.dtype:
            raise KernelFault(f"{values.dtype} {tuple(values.shape)} does not fit {self.dtype} {self.shape}")
        words = self._words(absolute)
        if absolute:
            written = values.contiguous().view(torch.int16)
            _block.words[words] = torch.where(_block.unfenced[words] == 0, written, NAN)
        else:
            _block.words[words] = values.contiguous().view(torch.int16)
            _block.unfenced[words] = _block.current.number

    def load(self, layout: Any) -> Tensor:
        _block.step()
        return self.read(absolute=False)

    def store(self, values: Tensor) -> None:
        _block.step()
        self.write(values, absolute=False)


def _fence_async_shared() -> None:
    _block.unfenced[_block.unfenced == _block.current.number] = 0


# Barriers.


def _barrier(memory: _Memory) -> _Barrier:
    if memory.start not in _block.barriers:
        raise KernelFault("a barrier that has not been initialized")
    return _block.barriers[memory.start]


def _barrier_init(memory: _Memory, count: int) -> None:
    _block.barriers[memory.start] = _Barrier(count, count)


def _barrier_expect(memory: _Memory, bytes: int, pred: bool = True) -> None:
    _block.step()
    if pred:
        _barrier(memory).expect(1, bytes, _block.current.number)


def _barrier_arrive(memory: _Memory, *, count: int = 1, pred: bool = True) -> None:
    _block.step()
    if pred:
        _barrier(memory).expect(count, 0, _block.current.number)


def _barrier_wait(memory: _Memory, phase: int) -> None:
    barrier = _barrier(memory)
    _block.step(lambda: barrier.phase != phase)


# TMA.


class _Descriptor:
    """What a kernel sees of a tensor descriptor."""

    def __init__(self, descriptor: Any):
        base = descriptor.base
        self.tensor = base.as_strided(descriptor.shape, descriptor.strides, base.storage_offset())
        self.shape, self.block_shape = tuple(descriptor.shape), tuple(descriptor.block_shape)
        self.dtype, self.layout = base.dtype, descriptor.layout

    def overlap(self, corner: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a box lies inside the tensor: (slices of the tensor, slices of the box)."""
        inside, box = [], []
        for first, length, size in zip(corner, self.block_shape, self.shape, strict=True):
            start = min(max(first, 0), size)
            stop = max(min(first + length, size), start)
            inside.append(slice(start, stop))
            box.append(slice(start - first, stop - first))
        return tuple(inside), tuple(box)

    def check(self, memory: _Memory) -> None:
        if memory.shape != self.block_shape or memory.dtype != self.dtype:
            raise KernelFault(f"a box of {self.dtype} {self.block_shape} does not fit {memory}")
        if memory.start % 128:
            raise KernelFault("TMA copies to and from multiples of 128 bytes")


def _tma_load(descriptor: _Descriptor, corner: Sequence[int], barrier: _Memory, memory: _Memory) -> None:
    descriptor.check(memory)
    signalled = _barrier(barrier)

    def run() -> None:
        values = torch.zeros(descriptor.block_shape, dtype=descriptor.dtype)
        inside, box = descriptor.overlap(corner)
        values[box] = descriptor.tensor[inside]
        memory.write(values, absolute=True)
        signalled.expect(0, -values.numel() * WORD, None)

    _block.copies.append(_Copy(run, _block.weight(-4)))
    _block.step()


def _tma_store(descriptor: _Descriptor, corner: Sequence[int], memory: _Memory) -> None:
    descriptor.check(memory)

    def run() -> None:
        inside, box = descriptor.overlap(corner)
        descriptor.tensor[inside] = memory.read(absolute=True)[box]

    copy = _Copy(run, _block.weight(-2))
    _block.current.stores.append(copy)
    if not _block.lazy:
        _block.copies.append(copy)
    _block.step()


def _tma_store_wait(pendings: int) -> None:
    _block.step()
    stores = _block.current.stores
    while len(stores) > pendings:
        _block.finish(stores.pop(0))


# wgmma.


class _Product:
    """The accumulator of a product under way."""

    def __init__(self, a: Tensor | _Memory, b: _Memory, acc: "Tensor | _Product", use_acc: bool):
        self.operands = a, b, acc, use_acc
        self.value: Tensor | None = None

    def finish(self) -> None:
        if self.value is not None:
            return
        a, b, acc, use_acc = self.operands
        before = acc.value if isinstance(acc, _Product) else acc
        left = a.read(absolute=True) if isinstance(a, _Memory) else a
        right = b.read(absolute=True)
        if left.dtype != right.dtype:
            raise KernelFault(f"a product of {left.dtype} and {right.dtype}")
        product = left.float() @ right.float()
        self.value = before + product if use_acc else product
        del self.operands


def _warpgroup_mma(a: Any, b: _Memory, acc: Any, *, use_acc: bool = True, is_async: bool = False) -> _Product:
    if not is_async:
        raise KernelFault("only asynchronous products are modelled")
    _block.step()
    product = _Product(a, b, acc, use_acc)
    _block.current.products.append(product)
    if not _block.lazy:
        product.finish()
    return product


def _warpgroup_mma_wait(num_outstanding: int, deps: Sequence[_Product]) -> Any:
    _block.step()
    products = _block.current.products
    while len(products) > num_outstanding:
        products.pop(0).finish()
    # A product that need not be complete stays one, so that using its value fails.
    results = [product if product in products else product.value for product in deps]
    return results[0] if len(results) == 1 else results


# The rest of the language: tensors are torch's, scalars Python's.


class _Pointer:
    def __init__(self, memory: Tensor, offset: int | Tensor):
        self.memory, self.offset = memory, offset

    def __add__(self, offset: int | Tensor) -> "_Pointer":
        return _Pointer(self.memory, self.offset + offset)

    @classmethod
    def of(cls, tensor: Tensor) -> "_Pointer":
        elements = tensor.untyped_storage().nbytes() // tensor.itemsize
        return cls(tensor.as_strided((elements,), (1,), 0), tensor.storage_offset())

    def checked(self, offset: Tensor) -> Tensor:
        if offset.numel() and not 0 <= int(offset.min()) <= int(offset.max()) < self.memory.numel():
            raise KernelFault("a pointer outside of its memory")
        return offset


def _load(pointer: _Pointer) -> Tensor:
    return pointer.memory[pointer.checked(pointer.offset)]


def _store(pointer: _Pointer, values: Tensor, mask: Tensor) -> None:
    mask = mask.expand(pointer.offset.shape)
    pointer.memory[pointer.checked(pointer.offset[mask])] = values[mask]


def _allocate(dtype: torch.dtype, shape: Sequence[int], layout: Any) -> _Memory:
    align = 16 if layout is None else 1024  # barriers lie anywhere, rings where the swizzle begins anew
    start = -(-_block.allocated // align) * align
    _block.allocated = start + torch.Size(shape).numel() * dtype.itemsize
    if _block.allocated > CAPACITY:
        raise KernelFault(f"{_block.allocated} bytes of shared memory")
    return _Memory(start, dtype, tuple(shape), layout)


def _maximum(a: Tensor, b: float, propagate_nan: Any = tl.PropagateNan.NONE) -> Tensor:
    if propagate_nan == tl.PropagateNan.ALL:
        return a.clamp_min(b)
    return a.fmax(torch.tensor(b))


def _static_assert(condition: bool) -> None:
    if not condition:
        raise KernelFault("static_assert")


_GL = types.SimpleNamespace(
    **{name: getattr(language, name) for name in ("constexpr", "SliceLayout")},
    float32=torch.float32,
    int64=torch.int64,
    static_range=range,
    static_assert=_static_assert,
    program_id=lambda axis: _block.program,
    num_programs=lambda axis: _block.programs,
    arange=lambda start, stop, layout: torch.arange(start, stop),
    zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
    where=lambda condition, a, b: torch.where(condition, a, torch.tensor(b, dtype=a.dtype)),
    minimum=min,
    maximum=_maximum,
    cast=lambda value, dtype: value,
    load=_load,
    store=_store,
    allocate_shared_memory=_allocate,
    warp_specialize=lambda functions, warps, registers: _block.split(functions),
)
_MBARRIER = types.SimpleNamespace(
    MBarrierLayout=lambda: None,
    init=_barrier_init,
    expect=_barrier_expect,
    arrive=_barrier_arrive,
    wait=_barrier_wait,
)
_TMA = types.SimpleNamespace(
    async_copy_global_to_shared=_tma_load, async_copy_shared_to_global=_tma_store, store_wait=_tma_store_wait
)
_EMULATED = {
    id(language): _GL,
    id(hopper.mbarrier): _MBARRIER,
    id(hopper.tma): _TMA,
    id(hopper.fence_async_shared): _fence_async_shared,
    id(hopper.warpgroup_mma): _warpgroup_mma,
    id(hopper.warpgroup_mma_wait): _warpgroup_mma_wait,
}


def _emulated(value: Any, converted: dict[int, Any]) -> Any:
    """A global of a kernel's module as the emulator understands it. converted: functions met before, by their id."""
    if id(value) in _EMULATED:
        return _EMULATED[id(value)]
    if isinstance(value, language.constexpr):
        return value.value
    if not isinstance(value, JITFunction):
        return value
    if id(value) not in converted:
        function, names = value.fn, {"__builtins__": builtins}
        converted[id(value)] = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__)
        used = (name for name in function.__code__.co_names if name in function.__globals__)
        names.update((name, _emulated(function.__globals__[name], converted)) for name in used)
    return converted[id(value)]


def run(kernel: JITFunction, grid: tuple[int], *args: Any, seed: int = 0, lazy: bool = False, **options: Any) -> None:
    """kernel[grid](*args, **options) on CPU tensors, in place of `edsr.kernels.triton.launch.run`.

    seed: of the schedule. lazy: whether wgmma and stores by TMA read shared memory as late as possible.
    """
    global _block
    function = _emulated(kernel, {})
    args = tuple(
        _Pointer.of(arg) if isinstance(arg, Tensor) else _Descriptor(arg) if hasattr(arg, "block_shape") else arg
        for arg in args
    )
    constants = {name: value for name, value in options.items() if name in inspect.signature(function).parameters}
    for program in range(grid[0]):
        _block = _Block(program, grid[0], f"{seed} {program}", lazy)
        function(*args, **constants)
        _block.current.check_finished()
        if _block.copies:
            raise KernelFault("copies outlive the block")
