# sigplug's head with the gradient of the stock one: none where the score is
# clipped. Its scores start at 0.1 and not at 0.5, see init_weights.
_base_ = './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

model = dict(
    pts_bbox_head=dict(
        type='sigplug.CenterHead',
        heatmap_act=dict(type='ClipSigmoid', grad='zero')))
