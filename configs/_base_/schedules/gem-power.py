# For the power p of a GeM named gem: no weight decay, which would pull it
# towards 0, and a learning rate of its own. A config with this file among its
# bases takes it by
#     optim_wrapper = dict(paramwise_cfg=_base_.power_paramwise_cfg)
# Schedules with an absolute eta_min lead all parameters to that rate, so that
# with them the factor counts during the first phase.
power_paramwise_cfg = dict(
    custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)})
