"""sigplug in a stock CenterHead: a few lines of its config change.

The config of mmdet3d's head and the same config with another type have equal
losses at the default settings. Then follows a short training with a loss that
mmdet3d's head does not have. Writes center_head.png.
"""
import argparse
import copy

import matplotlib.pyplot as plt
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

argparse.ArgumentParser(description=__doc__).parse_args()

train_cfg = dict(
    grid_size=[128, 128, 1], point_cloud_range=[-32, -32, -5, 32, 32, 3],
    voxel_size=[0.5, 0.5, 8], out_size_factor=2, dense_reg=1, max_objs=50,
    gaussian_overlap=0.1, min_radius=2,
    code_weights=[1.0] * 8 + [0.2] * 2)
stock = dict(
    type='mmdet3d.CenterHead', in_channels=32, share_conv_channel=32,
    tasks=[dict(num_class=2, class_names=['car', 'truck'])],
    common_heads=dict(
        reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
    separate_head=dict(
        type='mmdet3d.SeparateHead', init_bias=-2.19, final_kernel=3),
    bbox_coder=dict(
        type='mmdet3d.CenterPointBBoxCoder', out_size_factor=2,
        post_center_range=[-40, -40, -10, 40, 40, 10], voxel_size=[0.5, 0.5],
        pc_range=[-32, -32], max_num=20, code_size=9),
    loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
    loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
    norm_bbox=True, train_cfg=train_cfg)

# The changes: the type, and then whatever the stock head does not offer.
ours = dict(stock, type='sigplug.CenterHead')
logits = dict(
    ours, loss_cls=dict(type='sigplug.GaussianFocalLossWithLogits'))

# A scene of four boxes: x, y, z, length, width, height, yaw and velocity.
scene = InstanceData(
    bboxes_3d=LiDARInstance3DBoxes(
        torch.tensor([[10., 5, -1, 4.5, 1.9, 1.6, 0.3, 5, 1],
                      [-12, 8, -1, 4.2, 1.8, 1.5, 1.6, 0, 0],
                      [-5, -15, -1, 9.5, 2.6, 3.2, 0.0, 8, 0],
                      [16, -20, -1, 4.6, 1.9, 1.7, 2.4, 0, 3]]), box_dim=9),
    labels_3d=torch.tensor([0, 0, 1, 0]))
torch.manual_seed(0)
features = torch.randn(1, 32, 64, 64)

heads = {name: MODELS.build(copy.deepcopy(cfg)) for name, cfg in (
    ('stock', stock), ('sigplug', ours), ('sigplug, logits', logits))}
for head in heads.values():
    head.load_state_dict(heads['stock'].state_dict())
for name in ('stock', 'sigplug'):
    losses = heads[name].loss_by_feat(heads[name]([features]), [scene])
    print(name, {key: round(value.item(), 4) for key, value in losses.items()})

head = heads['sigplug, logits']
optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
curve = []
for _ in range(60):
    losses = head.loss_by_feat(head([features]), [scene])
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    curve.append({key: value.item() for key, value in losses.items()})
print('after 60 steps', {k: round(v, 4) for k, v in curve[-1].items()})

with torch.no_grad():
    score = head([features])[0][0]['heatmap'].sigmoid()
target = head.get_targets([scene])[0][0]
figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.9), layout='constrained')
for ax, values, title in ((axes[0], target, 'target, both classes'),
                          (axes[1], score, 'score after 60 steps')):
    ax.imshow(values[0].amax(0), vmin=0, vmax=1, origin='lower')
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])
for key in curve[0]:
    axes[2].semilogy([losses[key] for losses in curve], label=key)
axes[2].set_xlabel('step')
axes[2].legend(fontsize=8)
figure.savefig('center_head.png', dpi=150)
