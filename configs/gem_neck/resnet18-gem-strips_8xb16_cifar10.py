# The whole map and its two and four horizontal strips, side by side.
_base_ = './resnet18-gem_8xb16_cifar10.py'

model = dict(
    neck=dict(bins=(1, 2, 4)), head=dict(in_channels=512 * sum((1, 2, 4))))
