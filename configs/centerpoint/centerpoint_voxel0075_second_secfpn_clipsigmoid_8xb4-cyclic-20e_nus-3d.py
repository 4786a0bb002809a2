_base_ = 'mmdet3d::centerpoint/centerpoint_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py'  # noqa: E501

model = dict(
    data_preprocessor=dict(type='sigplug.Det3DDataPreprocessor'),
    pts_bbox_head=dict(
        type='sigplug.CenterHead', heatmap_act=dict(type='ClipSigmoid')))
default_hooks = dict(
    check_loss=dict(type='sigplug.CheckLossHook'),
    # That of mmdet3d saves at the end alone.
    checkpoint=dict(
        type='sigplug.CheckpointHook', interval=1, max_keep_ckpts=2))
