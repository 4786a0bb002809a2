# The quickstart with voxels of 0.1 x 0.1 x 0.2 m in place of pillars: GeM over
# all points of a voxel, then sparse convolution, which needs spconv on a CPU.
# The heatmap keeps its cells of 0.8 m.
_base_ = './centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_nus-mini-3d.py'  # noqa: E501

voxel_size = [0.1, 0.1, 0.2]
out_size_factor = 8
cells = dict(out_size_factor=out_size_factor, voxel_size=voxel_size[:2])
model = dict(
    type='DynamicMVXFasterRCNN',
    data_preprocessor=dict(
        voxel_type='dynamic',
        voxel_layer=dict(
            max_num_points=-1, max_voxels=(-1, -1), voxel_size=voxel_size)),
    pts_voxel_encoder=dict(
        _delete_=True,
        type='sigplug.GeMDynamicVFE',
        in_channels=4,
        feat_channels=[16],
        with_cluster_center=True,
        with_voxel_center=True,
        voxel_size=voxel_size,
        point_cloud_range=_base_.pc_range,
        p=3.0),
    pts_middle_encoder=dict(
        _delete_=True,
        type='SparseEncoder',
        in_channels=16,
        sparse_shape=[41, 1024, 1024],
        output_channels=32,
        order=('conv', 'norm', 'act'),
        encoder_channels=((16, 16), (16, 32), (32, 32), (32, )),
        encoder_paddings=((0, 1), (0, 1), (0, [0, 1, 1]), (0, )),
        block_type='basicblock'),
    pts_backbone=dict(
        in_channels=64,
        out_channels=[64, 128],
        layer_nums=[3, 3],
        layer_strides=[1, 2]),
    pts_neck=dict(
        in_channels=[64, 128],
        out_channels=[48, 48],
        upsample_strides=[1, 2]),
    pts_bbox_head=dict(in_channels=sum([48, 48]), bbox_coder=cells),
    train_cfg=dict(
        pts=dict(
            grid_size=[1024, 1024, 40],
            out_size_factor=out_size_factor,
            voxel_size=voxel_size)),
    test_cfg=dict(pts=cells))
