# Mixed precision (float16 with a loss scale), and the loss in logit space,
# which has neither a clip nor a logarithm of 0.
_base_ = './centerpoint_pillar02_second_secfpn_gem_8xb4-cyclic-20e_nus-3d.py'

model = dict(
    pts_bbox_head=dict(
        heatmap_act=None,
        loss_cls=dict(
            _delete_=True, type='GaussianFocalLossWithLogits')))
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
