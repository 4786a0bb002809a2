# The quickstart: GeM over the points of a pillar, and ClipSigmoid in front of
# the heatmap loss. All the rest is the stock twin.
_base_ = './centerpoint_pillar04_second_secfpn_stock_1xb4-onecycle-8e_nus-mini-3d.py'  # noqa: E501

model = dict(
    pts_voxel_encoder=dict(type='sigplug.GeMPillarFeatureNet', p=3.0),
    pts_bbox_head=dict(
        type='sigplug.CenterHead', heatmap_act=dict(type='ClipSigmoid')))
# The power p: no weight decay, which would pull it towards 0.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)}))
