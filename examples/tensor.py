"""Between two networks: a batch of tensors in, one out, on whatever device they are. `python -m examples.tensor`."""

import torch

from edsr import Upscaler, load_model


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.nn.Sequential(torch.nn.Conv2d(8, 3, 3, padding=1), torch.nn.Sigmoid()).to(device)
    upscaler = Upscaler(load_model("edsr-baseline", scale=2), device)

    with torch.no_grad():  # an Upscaler has no gradients, and says so where some are expected
        small = generator(torch.randn(2, 8, 48, 64, device=device))  # [N, 3, H, W] in 0..1
        large = upscaler.tensor(small)
    print(f"{list(small.shape)} -> {list(large.shape)}, {large.dtype} on {large.device}")


if __name__ == "__main__":
    main()
