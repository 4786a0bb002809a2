# In bfloat16.
_base_ = './centerpoint_pillar04_second_secfpn_logits_1xb2-onecycle-8e_nus-mini-half-3d.py'  # noqa: E501

optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
