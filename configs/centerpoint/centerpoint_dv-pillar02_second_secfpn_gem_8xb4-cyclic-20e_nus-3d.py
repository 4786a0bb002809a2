# Dynamic voxelisation: GeM over all points of a pillar, none cut off. This is
# mmdet3d's MVX detector that hands on the pillars of the dynamic encoder;
# CenterPoint itself adds nothing to the other one.
_base_ = './centerpoint_pillar02_second_secfpn_gem_8xb4-cyclic-20e_nus-3d.py'

model = dict(
    type='DynamicMVXFasterRCNN',
    data_preprocessor=dict(
        voxel_type='dynamic',
        voxel_layer=dict(max_num_points=-1, max_voxels=(-1, -1))),
    pts_voxel_encoder=dict(type='sigplug.GeMDynamicPillarFeatureNet'))
