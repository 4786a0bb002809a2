# Mixed precision (float16 with a loss scale), and the loss without a clip,
# whose gradient never vanishes in a cell that is confidently wrong.
_base_ = './centerpoint_pillar02_second_secfpn_gem_8xb4-cyclic-20e_nus-3d.py'

model = dict(pts_bbox_head=dict(loss_cls=dict(clip=None)))
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
