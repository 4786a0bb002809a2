# The stock twin of the quickstart, larger, on every other key frame, which are
# one second apart: many trainings are to be compared.
_base_ = [
    '../_base_/datasets/nus-mini-3d.py',
    '../_base_/models/centerpoint_pillar04_second_secfpn_nus.py',
    '../_base_/schedules/onecycle-8e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    pts_backbone=dict(layer_nums=[2, 3, 3]),
    pts_neck=dict(out_channels=[32, 32, 32]),
    pts_bbox_head=dict(in_channels=sum([32, 32, 32])))
train_dataloader = dict(dataset=dict(indices=list(range(0, 320, 2))))
# Evaluated by tools/test.py.
train_cfg = dict(val_begin=100)
