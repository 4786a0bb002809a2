"""ClipSigmoid in front of the focal loss: who still gets a gradient?

Draws the target of a heatmap, scores that are wrong about it, and the
gradient of the loss for three choices. Writes clip_sigmoid.png.
"""
import argparse

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm

from sigplug.models import GaussianFocalLossWithLogits
from sigplug.ops import clip_sigmoid, gaussian_heatmap

argparse.ArgumentParser(description=__doc__).parse_args()

# Three places: the first object is found, the second is overlooked, and in the
# third the model is sure of an object that is not there.
target = gaussian_heatmap(
    torch.tensor([[12, 14], [34, 30], [38, 10]]), torch.tensor([4, 6, 3]),
    torch.tensor([0, 0, 0]), num_classes=1, size=(44, 52))
seen = gaussian_heatmap(
    torch.tensor([[12, 14], [38, 10], [14, 34]]), torch.tensor([4, 3, 5]),
    torch.tensor([0, 0, 0]), num_classes=1, size=(44, 52))
logits = -12 + 26 * seen


def focal_loss(scores):
    """Compute mmdet's form of the loss from scores."""
    peak = target.eq(1)
    gain = scores.log() * (1 - scores)**2 * peak
    gain += (1 - scores).log() * scores**2 * (1 - target)**4 * ~peak
    return -gain.sum()


exact_loss = GaussianFocalLossWithLogits(reduction='sum')
losses = {
    "clip_sigmoid,\ngrad='zero' (as mmdet3d)":
        lambda x: focal_loss(clip_sigmoid(x)),
    "clip_sigmoid,\ngrad='straight_through'":
        lambda x: focal_loss(clip_sigmoid(x, grad='straight_through')),
    'GaussianFocalLossWithLogits,\nexact': lambda x: exact_loss(x, target),
}

figure, axes = plt.subplots(2, 3, figsize=(7.6, 5.2), layout='constrained')
for ax, values, title in ((axes[0, 0], target, 'target'),
                          (axes[0, 1], clip_sigmoid(logits), 'score')):
    ax.imshow(values[0], vmin=0, vmax=1, cmap='viridis')
    ax.set_title(title, fontsize=10)
axes[0, 2].axis('off')
for ax, (title, of) in zip(axes[1], losses.items()):
    x = logits.clone().requires_grad_()
    of(x).backward()
    size = x.grad[0].abs()
    image = ax.imshow(size.where(size > 0, torch.nan),
                      norm=LogNorm(1e-9, 1), cmap='magma')
    dead = (size == 0).sum().item()
    ax.set_title(f'{title}\n{dead} cells without gradient', fontsize=9)
    overlooked = size[30, 34].item()
    print(f'{title.replace(chr(10), " ")}: |gradient| at the overlooked '
          f'object {overlooked:.1e}, cells without gradient {dead}')
figure.colorbar(image, ax=axes[1], label='|d loss / d logit|')
for ax in axes.flat:
    ax.set_xticks([])
    ax.set_yticks([])
figure.savefig('clip_sigmoid.png', dpi=150)
