_base_ = 'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py'  # noqa: E501

model = dict(
    pts_voxel_encoder=dict(type='sigplug.GeMPillarFeatureNet', p=3.0),
    pts_bbox_head=dict(
        type='sigplug.CenterHead', heatmap_act=dict(type='ClipSigmoid')))
# The power p: no weight decay, which would pull it towards 0.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)}))
