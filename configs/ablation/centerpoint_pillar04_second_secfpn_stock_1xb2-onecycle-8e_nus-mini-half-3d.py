# The stock twin of the quickstart on every other key frame, which are one
# second apart, for twice as many epochs: many trainings are to be compared.
_base_ = [
    '../_base_/datasets/nus-mini-3d.py',
    '../_base_/models/centerpoint_pillar04_second_secfpn_nus.py',
    '../_base_/schedules/onecycle-8e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(dataset=dict(indices=list(range(0, 320, 2))))
# Evaluated by tools/test.py.
train_cfg = dict(val_begin=100)
