# The quickstart with dynamic voxelisation: GeM over all points of a pillar,
# none cut off, on the CPU too.
_base_ = './centerpoint_pillar04_second_secfpn_gem_1xb2-onecycle-5e_nus-mini-3d.py'  # noqa: E501

model = dict(
    type='DynamicMVXFasterRCNN',
    data_preprocessor=dict(
        voxel_type='dynamic',
        voxel_layer=dict(max_num_points=-1, max_voxels=(-1, -1))),
    pts_voxel_encoder=dict(type='sigplug.GeMDynamicPillarFeatureNet'))
