# The mean of the points of a pillar instead of the maximum.
_base_ = './centerpoint_pillar04_second_secfpn_stock_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

model = dict(
    pts_voxel_encoder=dict(
        type='sigplug.GeMPillarFeatureNet', p=1.0, p_trainable=False))
