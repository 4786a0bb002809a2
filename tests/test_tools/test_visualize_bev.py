import matplotlib.image
import numpy as np
import pytest
from conftest import REPOSITORY, load_tool

from sigplug.errors import UserError

CONFIG, = REPOSITORY.glob(
    'configs/centerpoint/centerpoint_pillar*_gem_*_nus-mini-3d.py')


@pytest.fixture(scope='module')
def tool():
    pytest.importorskip('mmdet3d')
    return load_tool('analysis_tools/visualize_bev.py')


@pytest.fixture(scope='module')
def cfg(synthetic_nuscenes):
    pytest.importorskip('mmdet3d')
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        cfg = Config.fromfile(CONFIG)
    init_default_scope('mmdet3d')
    return cfg


@pytest.fixture(scope='module')
def checkpoint(cfg, tmp_path_factory):
    """Untrained weights, but every box is in the middle of its cell."""
    import torch
    from mmengine.registry import MODELS
    from mmengine.runner import save_checkpoint
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    offset = model.pts_bbox_head.task_heads[0].reg[-1]
    torch.nn.init.zeros_(offset.weight)
    torch.nn.init.constant_(offset.bias, 0.5)
    path = tmp_path_factory.mktemp('checkpoint') / 'untrained.pth'
    save_checkpoint(dict(state_dict=model.state_dict()), str(path))
    return path


@pytest.mark.slow
def test_visualize_bev(tool, synthetic_nuscenes, checkpoint, tmp_path,
                       monkeypatch, run_here):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
    code, printed = run_here(
        tool, CONFIG, checkpoint, '--out-dir', tmp_path, '--num', 2,
        '--score-thr', 0.05, '--device', 'cpu')
    assert code == 0, printed.err
    # Six samples: two scenes of three key frames.
    pictures = [tmp_path / 'bev_0001.png', tmp_path / 'bev_0004.png']
    assert printed.out.splitlines()[-2:] == list(map(str, pictures))
    assert sorted(tmp_path.iterdir()) == pictures
    for path in pictures:
        assert matplotlib.image.imread(path).shape[:2] == (1200, 1530)


@pytest.mark.parametrize(('args', 'message'), [
    (['config.py'], "The config 'config.py' does not exist"),
    ([CONFIG, 'none.pth'], "the checkpoint 'none.pth' does not exist"),
    ([CONFIG], "'nowhere/' (val_dataloader.dataset.data_root) does not exist"),
    ([CONFIG, '--num', '0'], '--num must be at least 1, got 0'),
    ([CONFIG, '--score-thr', '3'], '--score-thr must lie in [0, 1], got 3.0'),
    ([CONFIG, '--bev-range', *'1001'], '--bev-range must have min < max'),
    ([CONFIG, '--cfg-options', 'a'], '--cfg-options takes KEY=VALUE pairs'),
])
def test_visualize_bev_errors(tool, tmp_path, monkeypatch, fail, args,
                              message):
    monkeypatch.chdir(tmp_path)
    if message.startswith('the checkpoint'):
        for name in ('nuscenes_infos_val.pkl', 'samples/LIDAR_TOP'):
            (tmp_path / 'nowhere' / name).mkdir(parents=True)
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', 'nowhere/')
    assert message in fail(tool, *args, '--out-dir', 'out')
    assert not (tmp_path / 'out').exists()


@pytest.fixture(scope='module')
def dataset(tool, cfg):
    from mmengine.registry import DATASETS
    return DATASETS.build(tool.dataset_config(cfg, 'val'))


def test_training_samples_are_not_augmented(tool, cfg, synthetic_nuscenes):
    from mmengine.registry import DATASETS
    dataset = DATASETS.build(tool.dataset_config(cfg, 'train'))
    assert len(dataset) == 24
    info = dataset.get_data_info(2)
    points = np.fromfile(info['lidar_path'], np.float32).reshape(-1, 5)
    drawn = dataset[2]['inputs']['points'].numpy()
    # Those of the key frame, not of earlier sweeps.
    drawn = drawn[drawn[:, -1] == 0]
    assert 1000 < len(drawn) <= len(points)
    rows = set(map(tuple, points[:, :3]))
    assert all(tuple(row) in rows for row in drawn[:, :3])


def test_heatmap_and_predictions_agree(tool, cfg, checkpoint, dataset):
    predict = tool.Predictor(
        tool.cli.build_model(cfg, str(checkpoint), 'cpu'), with_heatmap=True)
    drawn = predict(dataset[0], score_thr=0.0)
    heatmap, extent = drawn['heatmap'], np.array(drawn['heatmap_extent'])
    np.testing.assert_allclose(extent, [-51.2, -51.2, 51.2, 51.2])
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    cell = (extent[2:] - extent[:2]) / heatmap.shape[::-1]
    best = drawn['pred_scores'].argmax()
    assert drawn['pred_scores'][best] == pytest.approx(heatmap.max())
    np.testing.assert_allclose(
        drawn['pred_bboxes'][best, :2],
        extent[:2] + cell * (column + 0.5, row + 0.5), atol=1e-3)
    threshold = float(np.median(drawn['pred_scores']))
    fewer = predict(dataset[0], score_thr=threshold)['pred_scores']
    assert 0 < len(fewer) < len(drawn['pred_scores'])
    assert fewer.min() >= threshold


def test_a_foreign_checkpoint_is_refused(tool, cfg, tmp_path):
    import torch
    path = tmp_path / 'foreign.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1))), path)
    with pytest.raises(UserError, match='does not fit'):
        tool.cli.build_model(cfg, str(path), 'cpu')


def test_a_model_without_heatmap_is_named(tool):
    from torch import nn
    with pytest.raises(UserError, match='--no-heatmap'):
        tool.Predictor(nn.Linear(1, 1), with_heatmap=True)


@pytest.mark.parametrize(('num', 'indices', 'chosen'), [
    (4, None, [10, 30, 50, 70]),
    (1, None, [40]),
    (200, None, list(range(80))),
    (4, [79, 3], [79, 3]),
])
def test_choice_of_samples(tool, num, indices, chosen):
    from argparse import Namespace
    args = Namespace(num=num, indices=indices, split='val')
    assert tool.choose_samples(args, 80) == chosen
    args.indices = [80, 5]
    with pytest.raises(UserError, match='--indices 80: '):
        tool.choose_samples(args, 80)
