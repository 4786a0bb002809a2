"""One cycle over a short training, and what every training needs.

The Python twin of ``configs/_base_/schedules/onecycle-8e.py`` and
``default_runtime.py``.
"""
from mmengine.hooks import (
    DistSamplerSeedHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
)
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmengine.runner import (
    EpochBasedTrainLoop,
    LogProcessor,
    TestLoop,
    ValLoop,
)
from torch.optim import AdamW

from sigplug.engine.hooks import CheckLossHook, CheckpointHook

max_epochs = 8
lr = 3e-4
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=lr, weight_decay=0.01),
    clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(
        type=CosineAnnealingLR,
        T_max=max_epochs / 4,
        eta_min_ratio=10,
        begin=0,
        end=max_epochs / 4,
        by_epoch=True,
        convert_to_iter_based=True),
    dict(
        type=CosineAnnealingLR,
        T_max=max_epochs * 3 / 4,
        eta_min_ratio=1e-3,
        begin=max_epochs / 4,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True)
]
train_cfg = dict(
    type=EpochBasedTrainLoop, max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
auto_scale_lr = dict(enable=False, base_batch_size=4)

default_scope = 'mmdet3d'

default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=20),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type=DistSamplerSeedHook),
    check_loss=dict(type=CheckLossHook))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

log_processor = dict(type=LogProcessor, window_size=20, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
