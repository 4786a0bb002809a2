# A CenterPoint-pillar of stock mmdet3d parts that is small enough to train on
# a CPU: 0.4 m pillars, a heatmap of 0.8 m cells, few channels, one task.
voxel_size = [0.4, 0.4, 8]
pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]
out_size_factor = 2
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.05)
model = dict(
    type='CenterPoint',
    data_preprocessor=dict(
        type='Det3DDataPreprocessor',
        voxel=True,
        voxel_layer=dict(
            max_num_points=10,
            voxel_size=voxel_size,
            max_voxels=(12000, 12000),
            point_cloud_range=pc_range)),
    pts_voxel_encoder=dict(
        type='PillarFeatureNet',
        in_channels=4,
        feat_channels=[32],
        with_distance=False,
        voxel_size=voxel_size,
        point_cloud_range=pc_range,
        norm_cfg=dict(type='BN1d', eps=1e-3, momentum=0.05),
        # Offsets from the pillar's centre instead of absolute coordinates,
        # which would drown them in a short training.
        legacy=True),
    pts_middle_encoder=dict(
        type='PointPillarsScatter', in_channels=32, output_shape=(256, 256)),
    pts_backbone=dict(
        type='SECOND',
        in_channels=32,
        out_channels=[32, 64, 128],
        layer_nums=[1, 2, 2],
        layer_strides=[2, 2, 2],
        norm_cfg=norm_cfg,
        conv_cfg=dict(type='Conv2d', bias=False)),
    pts_neck=dict(
        type='SECONDFPN',
        in_channels=[32, 64, 128],
        out_channels=[16, 16, 16],
        upsample_strides=[1, 2, 4],
        norm_cfg=norm_cfg,
        upsample_cfg=dict(type='deconv', bias=False),
        use_conv_for_no_stride=True),
    pts_bbox_head=dict(
        type='CenterHead',
        in_channels=sum([16, 16, 16]),
        tasks=[
            dict(
                num_class=10,
                class_names=[
                    'car', 'truck', 'construction_vehicle', 'bus', 'trailer',
                    'barrier', 'motorcycle', 'bicycle', 'pedestrian',
                    'traffic_cone'
                ])
        ],
        common_heads=dict(
            reg=(2, 1), height=(1, 1), dim=(3, 1), rot=(2, 1), vel=(2, 1)),
        share_conv_channel=32,
        norm_cfg=dict(type='BN2d', eps=1e-3, momentum=0.05),
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=pc_range[:2],
            post_center_range=post_center_range,
            max_num=300,
            score_threshold=0.05,
            out_size_factor=out_size_factor,
            voxel_size=voxel_size[:2],
            code_size=9),
        separate_head=dict(
            type='SeparateHead',
            head_conv=32,
            init_bias=-2.19,
            final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(
            type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
        norm_bbox=True),
    train_cfg=dict(
        pts=dict(
            point_cloud_range=pc_range,
            grid_size=[256, 256, 1],
            voxel_size=voxel_size,
            out_size_factor=out_size_factor,
            dense_reg=1,
            gaussian_overlap=0.1,
            max_objs=200,
            min_radius=2,
            code_weights=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2])),
    test_cfg=dict(
        pts=dict(
            pc_range=pc_range[:2],
            post_center_limit_range=post_center_range,
            score_threshold=0.05,
            out_size_factor=out_size_factor,
            voxel_size=voxel_size[:2],
            nms_type='rotate',
            pre_max_size=1000,
            post_max_size=200,
            nms_thr=0.2)))
