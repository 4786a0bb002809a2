# mmdet3d has a head for MonoFlex, but neither a config nor losses that run.
_base_ = '../smoke/smoke_dla34_dlaneck_gn-all_logits_4xb8-6x_kitti-mono3d.py'

model = dict(
    type='SingleStageMono3DDetector',
    bbox_head=dict(
        _delete_=True,
        type='sigplug.MonoFlexHead',
        num_classes=3,
        in_channels=64,
        use_edge_fusion=True,
        # The offsets of the centres, beside the heatmap.
        edge_fusion_inds=[(1, 0)],
        edge_heatmap_ratio=1 / 8,
        filter_outside_objs=False,
        stacked_convs=0,
        feat_channels=64,
        use_direction_classifier=False,
        diff_rad_by_sin=False,
        pred_attrs=False,
        pred_velo=False,
        dir_offset=0,
        strides=None,
        # 2-D box, offset, keypoints, their uncertainty, size, orientation,
        # depth, its uncertainty.
        group_reg_dims=((4, ), (2, ), (20, ), (3, ), (3, ), (8, 8), (1, ),
                        (1, )),
        cls_branch=(256, ),
        reg_branch=((256, ), ) * 8,
        num_attrs=0,
        bbox_code_size=7,
        dir_branch=(),
        attr_branch=(),
        bbox_coder=dict(
            type='MonoFlexCoder',
            depth_mode='inv_sigmoid',
            base_depth=(26.494627, 16.05988),
            depth_range=[0.1, 100],
            combine_depth=True,
            uncertainty_range=[-10, 10],
            # Mean and deviation of a pedestrian, a cyclist and a car.
            base_dims=((0.8423, 1.7607, 0.6602, 0.2349, 0.1133, 0.1427),
                       (1.7635, 1.7372, 0.5968, 0.1766, 0.0948, 0.1242),
                       (3.8840, 1.5261, 1.6286, 0.4259, 0.1367, 0.1022)),
            dims_mode='linear',
            multibin=True,
            num_dir_bins=4,
            bin_centers=[0, 1.5707963, 3.1415927, -1.5707963],
            bin_margin=0.5235988,
            code_size=7),
        norm_cfg=dict(type='GN', num_groups=32),
        loss_cls=dict(type='GaussianFocalLossWithLogits'),
        loss_bbox=dict(type='mmdet.GIoULoss'),
        loss_dir=dict(type='MultiBinLoss'),
        loss_keypoints=dict(type='mmdet.L1Loss', loss_weight=0.2),
        loss_dims=dict(type='mmdet.L1Loss'),
        loss_offsets_2d=dict(type='mmdet.L1Loss', loss_weight=0.5),
        loss_direct_depth=dict(type='mmdet.L1Loss'),
        loss_keypoints_depth=dict(type='mmdet.L1Loss', loss_weight=0.2),
        loss_combined_depth=dict(type='mmdet.L1Loss', loss_weight=0.2),
        conv_bias=True,
        dcn_on_last_conv=False))

# Without the affine augmentation of SMOKE, which leaves the camera as it is.
train_pipeline = [
    dict(type='LoadImageFromFileMono3D'),
    dict(
        type='LoadAnnotations3D',
        with_bbox=True,
        with_label=True,
        with_attr_label=False,
        with_bbox_3d=True,
        with_label_3d=True,
        with_bbox_depth=True),
    dict(type='RandomFlip3D', flip_ratio_bev_horizontal=0.5),
    dict(
        type='Pack3DDetInputs',
        keys=[
            'img', 'gt_bboxes', 'gt_bboxes_labels', 'gt_bboxes_3d',
            'gt_labels_3d', 'centers_2d', 'depths'
        ])
]
test_pipeline = [
    dict(type='LoadImageFromFileMono3D'),
    dict(type='Pack3DDetInputs', keys=['img'])
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
