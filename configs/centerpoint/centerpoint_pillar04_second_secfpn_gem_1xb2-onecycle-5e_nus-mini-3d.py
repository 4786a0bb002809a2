# The quickstart: GeM over the points of a pillar, and a clipped sigmoid in the
# heatmap loss; a sample without points is no error. All the rest computes what
# the stock twin does.
_base_ = [
    './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-5e_nus-mini-3d.py',  # noqa: E501
    '../_base_/schedules/gem-power.py',
]

model = dict(
    data_preprocessor=dict(type='sigplug.Det3DDataPreprocessor'),
    pts_voxel_encoder=dict(type='sigplug.GeMPillarFeatureNet', p=3.0),
    pts_middle_encoder=dict(
        type='sigplug.PointPillarsScatter', channels_last=True),
    pts_bbox_head=dict(
        type='sigplug.CenterHead',
        # ClipSigmoid() and mmdet's loss in one operation.
        loss_cls=dict(type='sigplug.GaussianFocalLossWithLogits', clip=1e-4)))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
# How much of the heatmap sits at the clip, as often as the logger logs.
custom_hooks = [dict(type='sigplug.HeatmapSaturationHook', interval=20)]
