_base_ = 'mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py'

model = dict(
    bbox_head=dict(
        type='sigplug.CenterNetHead', heatmap_act=dict(type='ClipSigmoid')))
