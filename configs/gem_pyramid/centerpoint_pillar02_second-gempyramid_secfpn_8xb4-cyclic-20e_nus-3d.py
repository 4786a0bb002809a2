# A fourth level of 3.2 m cells, which sees twice as far as the third one.
_base_ = [
    'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py',  # noqa: E501
    '../_base_/schedules/gem-power.py',
]

model = dict(
    data_preprocessor=dict(type='sigplug.Det3DDataPreprocessor'),
    pts_neck=[
        dict(type='sigplug.GeMPyramid', num_outs=4),
        # The stock neck, with one level more.
        dict(
            type='SECONDFPN',
            in_channels=[64, 128, 256, 256],
            out_channels=[128, 128, 128, 128],
            upsample_strides=[0.5, 1, 2, 4],
            norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
            upsample_cfg=dict(type='deconv', bias=False),
            use_conv_for_no_stride=True)
    ],
    pts_bbox_head=dict(in_channels=sum([128, 128, 128, 128])))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
default_hooks = dict(
    check_loss=dict(type='sigplug.CheckLossHook'),
    # That of mmdet3d saves at the end alone.
    checkpoint=dict(
        type='sigplug.CheckpointHook', interval=1, max_keep_ckpts=2))
