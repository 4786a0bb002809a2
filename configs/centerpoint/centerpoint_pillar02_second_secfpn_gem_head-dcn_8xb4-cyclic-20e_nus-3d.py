_base_ = [
    'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_head-dcn_8xb4-cyclic-20e_nus-3d.py',  # noqa: E501
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
default_hooks = dict(
    check_loss=dict(type='sigplug.CheckLossHook'),
    # That of mmdet3d saves at the end alone.
    checkpoint=dict(
        type='sigplug.CheckpointHook', interval=1, max_keep_ckpts=2))
