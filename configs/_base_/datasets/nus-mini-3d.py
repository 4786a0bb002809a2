# A nuScenes v1.0-mini data set for LiDAR detection, synthetic by default. Real
# data, with mmdet3d's info files, takes its place through the environment:
# SIGPLUG_DATA_ROOT=data/nuscenes/ and, unless it is the mini set, also
# SIGPLUG_DATA_VERSION=v1.0-trainval.
dataset_type = 'NuScenesDataset'
data_root = '{{$SIGPLUG_DATA_ROOT:data/synthetic_nuscenes/}}'
data_version = '{{$SIGPLUG_DATA_VERSION:v1.0-mini}}'
data_prefix = dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP')
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
class_names = [
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier',
    'motorcycle', 'bicycle', 'pedestrian', 'traffic_cone'
]
metainfo = dict(classes=class_names, version=data_version)
input_modality = dict(use_lidar=True, use_camera=False)
backend_args = None

load_points = [
    dict(
        type='sigplug.CheckSample',
        load_dim=5,
        sweeps_num=1,
        backend_args=backend_args),
    dict(
        type='LoadPointsFromFile',
        coord_type='LIDAR',
        load_dim=5,
        use_dim=5,
        backend_args=backend_args),
    dict(
        type='LoadPointsFromMultiSweeps',
        sweeps_num=1,
        use_dim=[0, 1, 2, 4],  # x, y, z and the age of the sweep
        pad_empty_sweeps=True,
        remove_close=True,
        test_mode=True,
        backend_args=backend_args)
]
train_pipeline = [
    *load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    # Turning the scene around keeps the side of the road that one drives on,
    # which a mirror image would not; it tells front from back far away.
    dict(
        type='RandomChoice',
        transforms=[[
            dict(
                type='GlobalRotScaleTrans',
                rot_range=[turn - 0.3925, turn + 0.3925],
                scale_ratio_range=[0.95, 1.05],
                translation_std=[0, 0, 0])
        ] for turn in (0.0, 3.14159)]),
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='PointShuffle'),
    dict(
        type='Pack3DDetInputs',
        keys=['points', 'gt_bboxes_3d', 'gt_labels_3d'])
]
test_pipeline = [
    *load_points,
    dict(type='PointsRangeFilter', point_cloud_range=point_cloud_range),
    dict(type='Pack3DDetInputs', keys=['points'])
]

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        data_prefix=data_prefix,
        pipeline=train_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        use_valid_flag=True,
        test_mode=False,
        box_type_3d='LiDAR',
        backend_args=backend_args))
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_val.pkl',
        data_prefix=data_prefix,
        pipeline=test_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        test_mode=True,
        box_type_3d='LiDAR',
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='NuScenesMetric',
    data_root=data_root,
    ann_file=data_root.rstrip('/') + '/nuscenes_infos_val.pkl',
    metric='bbox',
    backend_args=backend_args)
test_evaluator = val_evaluator

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='Det3DLocalVisualizer', vis_backends=vis_backends, name='visualizer')
