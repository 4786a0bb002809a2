# CenterPoint on KITTI, whose boxes have 7 values: no branch for a velocity.
# Data set, augmentation and schedule are those of mmdet3d's PointPillars.
_base_ = [
    'mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py',  # noqa: E501
    '../_base_/schedules/gem-power.py',
]

voxel_size = [0.16, 0.16, 4]
pc_range = [0, -39.68, -3, 69.12, 39.68, 1]
post_center_range = [-5, -45, -5, 75, 45, 3]
out_size_factor = 2
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    _delete_=True,
    type='CenterPoint',
    data_preprocessor=dict(
        type='sigplug.Det3DDataPreprocessor',
        voxel=True,
        voxel_layer=dict(
            max_num_points=32,
            voxel_size=voxel_size,
            max_voxels=(16000, 40000),
            point_cloud_range=pc_range)),
    pts_voxel_encoder=dict(
        type='sigplug.GeMPillarFeatureNet',
        p=3.0,
        in_channels=4,
        feat_channels=[64],
        voxel_size=voxel_size,
        point_cloud_range=pc_range,
        legacy=False),
    pts_middle_encoder=dict(
        type='sigplug.PointPillarsScatter',
        channels_last=True,
        in_channels=64,
        output_shape=(496, 432)),
    pts_backbone=dict(
        type='SECOND',
        in_channels=64,
        out_channels=[64, 128, 256],
        layer_nums=[3, 5, 5],
        layer_strides=[2, 2, 2],
        norm_cfg=norm_cfg,
        conv_cfg=dict(type='Conv2d', bias=False)),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[64, 128, 256],
        out_channels=[128, 128, 128],
        upsample_strides=[1, 2, 4],
        norm_cfg=norm_cfg,
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='sigplug.CenterHead',
        in_channels=sum([128, 128, 128]),
        # In the order of the data set's classes.
        tasks=[
            dict(num_class=3, class_names=['Pedestrian', 'Cyclist', 'Car'])
        ],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2)),
        share_conv_channel=64,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=pc_range[:2],
            post_center_range=post_center_range,
            max_num=200,
            score_threshold=0.1,
            out_size_factor=out_size_factor,
            voxel_size=voxel_size[:2],
            code_size=7),
        separate_head=dict(
            type='SeparateHead', init_bias=-2.19, final_kernel=3),
        # ClipSigmoid() and mmdet's loss in one operation.
        loss_cls=dict(
            type='sigplug.GaussianFocalLossWithLogits', clip=1e-4),
        loss_bbox=dict(
            type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=pc_range,
            grid_size=[432, 496, 1],
            voxel_size=voxel_size,
            out_size_factor=out_size_factor,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=200,
            min_radius=2,
            code_weights=[1.0] * 8)),
    test_cfg=dict(
        pts=dict(
            pc_range=pc_range[:2],
            post_center_limit_range=post_center_range,
            score_threshold=0.1,
            out_size_factor=out_size_factor,
            voxel_size=voxel_size[:2],
            nms_type='rotate',
            pre_max_size=1000,
            post_max_size=100,
            nms_thr=0.2)))
optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
default_hooks = dict(
    check_loss=dict(type='sigplug.CheckLossHook'),
    # That of mmdet3d saves at the end alone.
    checkpoint=dict(
        type='sigplug.CheckpointHook', interval=1, max_keep_ckpts=2))
