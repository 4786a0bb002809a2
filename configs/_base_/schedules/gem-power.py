# For the power of GeMPillarFeatureNet, GeMContext and GeMPyramid, whose name
# ends in gem.p: no weight decay, which would pull it towards 0, and a rate of
# its own. (That of a GeMNeck ends in neck.p.) A config with this file among
# its bases takes it by
#     optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
# A schedule with an absolute eta_min leads all parameters to that same rate:
# there the factor only counts at the start. eta_min_ratio keeps it.
power_paramwise_cfg = dict(
    custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)})
