# The first scores are 0.01 and not 0.1.
_base_ = './centerpoint_pillar04_second_secfpn_clipzero_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

model = dict(pts_bbox_head=dict(heatmap_prior=0.01))
