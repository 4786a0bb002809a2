# The generalised mean of the points of a pillar, its p trained from 3 on.
_base_ = [
    './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-8e_nus-mini-half-3d.py',  # noqa: E501
    '../_base_/schedules/gem-power.py',
]

model = dict(
    pts_voxel_encoder=dict(type='sigplug.GeMPillarFeatureNet', p=3.0))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
