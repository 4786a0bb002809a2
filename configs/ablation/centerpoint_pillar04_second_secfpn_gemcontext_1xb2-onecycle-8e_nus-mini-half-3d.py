# The channels of the neck's map weighted by a GeM descriptor of it.
_base_ = [
    './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-8e_nus-mini-half-3d.py',  # noqa: E501
    '../_base_/schedules/gem-power.py',
]

model = dict(
    pts_neck=dict(
        _delete_=True,
        type='sigplug.GeMContext',
        in_channels=[96],
        inner=_base_.model.pts_neck))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
