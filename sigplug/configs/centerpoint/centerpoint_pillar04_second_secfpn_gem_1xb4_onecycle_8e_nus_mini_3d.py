"""The quickstart as a config in plain Python.

It trains as it is, ``python tools/train.py <this file>``, and another such
config takes it by ``with read_base(): from sigplug.configs.centerpoint...``.
"""
from mmengine.config import read_base

with read_base():
    from .._base_.centerpoint_pillar04_second_secfpn_gem_nus import *
    from .._base_.nus_mini_3d import *
    from .._base_.onecycle_8e import *

from sigplug.engine.hooks import HeatmapSaturationHook

optim_wrapper.update(
    paramwise_cfg=dict(
        custom_keys={'gem.p': dict(lr_mult=10.0, decay_mult=0.0)}))
custom_hooks = [dict(type=HeatmapSaturationHook, interval=20)]
