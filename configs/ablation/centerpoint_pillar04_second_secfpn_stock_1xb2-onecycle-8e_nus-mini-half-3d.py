# The stock twin of the quickstart on every other key frame, which are one
# second apart, and in small batches: many trainings are to be compared.
_base_ = '../centerpoint/centerpoint_pillar04_second_secfpn_stock_1xb4-onecycle-8e_nus-mini-3d.py'  # noqa: E501

train_dataloader = dict(
    batch_size=2, dataset=dict(indices=list(range(0, 320, 2))))
auto_scale_lr = dict(base_batch_size=2)
# Evaluated by tools/test.py.
train_cfg = dict(val_begin=100)
