_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(neck=dict(type='sigplug.GeMNeck'))
# Weight decay would pull the trained power towards 0. The rate of this
# schedule's SGD is high enough for it.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'neck.p': dict(decay_mult=0.0)}))
