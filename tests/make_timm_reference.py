"""Makes timm_reference.npz: a small Mixer of timm's, its scores and its gradients.

    python tests/make_timm_reference.py OUT.npz

Needs PyTorch and timm. Every parameter is drawn at random, the head and all biases too; all sizes
differ. Arrays: `weights/NAME` and `gradients/NAME` under timm's names, images (B, H, W, 3), labels
(B,), logits (B, K); float32, but computed in float64.
"""

import sys

import numpy as np


def main(path: str) -> None:
    import timm
    import torch
    from timm.models.mlp_mixer import MlpMixer

    generator = torch.Generator().manual_seed(0)
    model = MlpMixer(
        num_classes=5, img_size=12, in_chans=3, patch_size=4, num_blocks=2, embed_dim=8,
        mlp_ratio=(0.9, 1.4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            drawn = 0.5 * torch.randn(p.shape, generator=generator) + (p.mean() == 1).float()
            p.copy_(drawn.float())  # what float32 holds
    images = torch.randn(3, 12, 12, 3, generator=generator)
    labels = torch.tensor([1, 4, 0])
    logits = model(images.double().permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(logits, labels).backward()
    arrays = {f"weights/{n}": p.detach() for n, p in model.named_parameters()}
    arrays |= {f"gradients/{n}": p.grad for n, p in model.named_parameters()}
    arrays |= {"images": images, "logits": logits.detach()}
    found = {name: value.numpy().astype(np.float32) for name, value in arrays.items()}
    np.savez(path, labels=labels.numpy(), timm=np.array(timm.__version__), **found)


if __name__ == "__main__":
    main(sys.argv[1])
