# P6 and P7 by GeM instead of FPN's strided convolutions.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/schedules/gem-power.py',
]

model = dict(
    neck=[
        dict(
            type='FPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            start_level=1,
            num_outs=3),
        dict(type='sigplug.GeMPyramid', num_outs=5)
    ])
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
