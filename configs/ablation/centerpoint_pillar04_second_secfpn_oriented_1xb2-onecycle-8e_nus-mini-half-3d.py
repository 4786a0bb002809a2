# Peaks along the boxes instead of round ones.
_base_ = './centerpoint_pillar04_second_secfpn_clipzero_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

model = dict(train_cfg=dict(pts=dict(oriented_gaussians=True)))
