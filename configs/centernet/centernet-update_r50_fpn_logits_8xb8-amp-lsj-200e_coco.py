# Under mixed precision a bound of 1 - 1e-4 rounds to 1. The loss of logits
# needs none.
_base_ = 'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py'

model = dict(
    bbox_head=dict(
        type='sigplug.CenterNetUpdateHead',
        loss_cls=dict(type='sigplug.GaussianFocalLossWithLogits')))
