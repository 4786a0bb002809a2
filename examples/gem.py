"""GeM from mean to max on a feature map.

One trained number, p, moves the pooling between the mean (p = 1) and the
maximum (p = inf). Writes gem.png.
"""
import argparse
import math

import matplotlib.pyplot as plt
import torch

from sigplug.models import GeM
from sigplug.ops import gem_pool

argparse.ArgumentParser(description=__doc__).parse_args()

# A feature map as after a ReLU: noise, and a few strong responses.
torch.manual_seed(0)
y, x = torch.meshgrid(torch.arange(64.), torch.arange(64.), indexing='ij')
features = torch.rand(1, 1, 64, 64) * 0.2
for cx, cy, width, height in ((15, 20, 2, 1), (44, 14, 5, .7), (40, 46, 1, 1)):
    features += height * torch.exp(
        -((x - cx)**2 + (y - cy)**2) / (2 * width**2))

powers = (1.0, 3.0, 10.0, math.inf)
figure, axes = plt.subplots(2, 3, figsize=(7.6, 5.2), layout='constrained')
axes = axes.flatten()
axes[0].imshow(features[0, 0], vmin=0, vmax=1.2)
axes[0].set_title('feature map', fontsize=10)
for ax, p in zip(axes[1:], powers):
    ax.imshow(gem_pool(features, p, kernel_size=8)[0, 0], vmin=0, vmax=1.2)
    ax.set_title(f'8 x 8 windows, p = {p:g}', fontsize=10)
for ax in axes[:5]:
    ax.set_xticks([])
    ax.set_yticks([])

# The whole map as one number, with p trained until that number is 0.6.
layer = GeM(p=3.0)
optimizer = torch.optim.Adam(layer.parameters(), lr=0.2)
for _ in range(200):
    optimizer.zero_grad()
    (layer(features) - 0.6).square().sum().backward()
    optimizer.step()
trained = layer.p.item()
print(f'p = 3 gives {gem_pool(features, 3.0).item():.3f}, '
      f'the trained p = {trained:.2f} gives {layer(features).item():.3f}')

steps = torch.logspace(0, 2, 60).tolist()
axes[5].semilogx(steps, [gem_pool(features, p).item() for p in steps])
axes[5].plot(trained, layer(features).item(), 'o', label='trained to give 0.6')
axes[5].axhline(features.mean(), color='grey', linestyle=':', label='mean')
axes[5].axhline(features.max(), color='grey', linestyle='--', label='maximum')
axes[5].set_xlabel('p')
axes[5].set_title('the whole map', fontsize=10)
axes[5].legend(fontsize=8)
figure.savefig('gem.png', dpi=150)
