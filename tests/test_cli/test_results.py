import pytest

from sigplug.cli.results import summarize_nuscenes

METRICS = {
    'car_AP_dist_0.5': 0.2, 'car_AP_dist_1.0': 0.4, 'car_AP_dist_2.0': 0.5,
    'car_AP_dist_4.0': 0.9, 'traffic_cone_AP_dist_0.5': 0.1,
    'car_trans_err': 0.3, 'mATE': 0.1, 'mASE': 0.2, 'mAOE': 0.3, 'mAVE': 0.4,
    'mAAE': 0.5, 'mAP': 0.45, 'NDS': 0.55}


@pytest.mark.parametrize('prefix', [
    'NuScenes metric/pred_instances_3d_NuScenes/', ''])
def test_summary(prefix):
    metrics = {f'{prefix}{name}': value for name, value in METRICS.items()}
    assert summarize_nuscenes(dict(metrics, step=7)) == dict(
        mAP=0.45, NDS=0.55, class_AP=dict(car=0.5, traffic_cone=0.1),
        TP_errors=dict(mATE=0.1, mASE=0.2, mAOE=0.3, mAVE=0.4, mAAE=0.5))


def test_missing_metric():
    metrics = dict(METRICS)
    del metrics['mAVE']
    with pytest.raises(KeyError, match='mAVE'):
        summarize_nuscenes(metrics)
