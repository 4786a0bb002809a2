# A context in each block of the last three stages. It starts as the identity:
# the pretrained backbone keeps its values.
_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/schedules/gem-power.py',
]

model = dict(
    backbone=dict(plugins=[
        dict(
            cfg=dict(type='sigplug.GeMContext', ratio=1. / 16),
            stages=(False, True, True, True),
            position='after_conv3')
    ]))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
