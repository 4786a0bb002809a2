_base_ = 'mmdet3d::smoke/smoke_dla34_dlaneck_gn-all_4xb8-6x_kitti-mono3d.py'

# Activation and loss in one operation. For scores that are clipped, as
# upstream's, loss_cls.clip=1e-4; for the stock loss, heatmap_act instead.
model = dict(
    bbox_head=dict(
        type='sigplug.SMOKEMono3DHead',
        loss_cls=dict(type='GaussianFocalLossWithLogits')))
