"""The operations an EDSR network is made of, one namespace per way of executing them.

Importable without a GPU. Today there is one namespace, `kernels.reference`, in plain PyTorch: the
oracle every other one is judged against, and the path that runs where no GPU is.
"""
