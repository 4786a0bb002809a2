_base_ = 'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py'

model = dict(
    bbox_head=dict(
        type='sigplug.CornerHead', heatmap_act=dict(type='ClipSigmoid')))
