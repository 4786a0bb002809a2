_base_ = 'mmdet::centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py'  # noqa: E501

model = dict(
    bbox_head=dict(
        type='sigplug.CentripetalHead',
        heatmap_act=dict(type='ClipSigmoid')))
