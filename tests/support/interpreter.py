"""Triton's interpreter (3.6, 3.7), mended.

For bf16: it keeps such numbers as 16 bits, multiplies those bits in a dot, and cuts digits off where a GPU rounds to
nearest even. And 3.6's does not take a number of its own as the end of a range, with numpy from 2.4 on.
"""

import numpy as np


def mend() -> None:
    from triton import language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(data, source, target, rounding_mode):
        if source == tl.bfloat16 and target == tl.float32:
            return data.astype(np.uint32) << 16
        if source == tl.float32 and target == tl.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            return np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16)
        return convert(data, source, target, rounding_mode)

    def create_dot(self, a, b, d, *options):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.create_fp_to_fp(x, tl.float32, None) for x in (a, b))
        return dot(self, a, b, d, *options)

    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot
