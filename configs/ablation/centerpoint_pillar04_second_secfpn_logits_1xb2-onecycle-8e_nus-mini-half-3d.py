# The focal loss of the logits, without a clip.
_base_ = './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

model = dict(
    pts_bbox_head=dict(
        type='sigplug.CenterHead',
        loss_cls=dict(type='sigplug.GaussianFocalLossWithLogits')))
