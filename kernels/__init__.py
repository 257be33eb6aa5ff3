"""The operations an EDSR network is made of, one namespace per way of executing them.

`kernels.reference`: plain PyTorch, on any device; the oracle every other one is judged against.
`kernels.fused`: Triton kernels. Importing this package needs neither Triton nor a GPU; importing that one needs Triton.
"""
