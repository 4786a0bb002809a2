# Stock mmdet3d parts only: the twin that the quickstart is compared with.
_base_ = [
    '../_base_/datasets/nus-mini-3d.py',
    '../_base_/models/centerpoint_pillar04_second_secfpn_nus.py',
    '../_base_/schedules/onecycle-5e.py',
    '../_base_/default_runtime.py',
]
