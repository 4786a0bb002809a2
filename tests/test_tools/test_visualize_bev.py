"""Pictures of the samples of a data set, with and without a model."""
import matplotlib.image
import numpy as np
import pytest
from conftest import QUICKSTART, load_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import save_checkpoint

from sigplug import visualization


@pytest.fixture(scope='module')
def tool():
    return load_tool('analysis_tools/visualize_bev.py')


@pytest.fixture(scope='module')
def cfg(synthetic_nuscenes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        cfg = Config.fromfile(QUICKSTART)
    init_default_scope('mmdet3d')
    return cfg


@pytest.fixture
def drawn(monkeypatch, synthetic_nuscenes):
    """The arguments of each picture that is drawn."""
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
    calls, draw_bev = [], visualization.draw_bev

    def spy(points, **kwargs):
        calls.append(dict(kwargs, points=points))
        return draw_bev(points, **kwargs)

    monkeypatch.setattr(visualization, 'draw_bev', spy)
    return calls


def test_heatmap_and_predictions(tool, cfg, drawn, tmp_path_factory, tmp_path,
                                 succeed):
    checkpoint = tmp_path_factory.mktemp('untrained') / 'untrained.pth'
    state = MODELS.build(cfg.model).state_dict()
    save_checkpoint(dict(state_dict=state), str(checkpoint))
    printed = succeed(
        tool, QUICKSTART, checkpoint, '--out-dir', tmp_path, '--num', 2,
        '--score-thr', 0.05, '--device', 'cpu')
    # Six samples: two scenes of three key frames.
    pictures = [tmp_path / 'bev_0001.png', tmp_path / 'bev_0004.png']
    assert printed.splitlines()[-2:] == list(map(str, pictures))
    assert sorted(tmp_path.iterdir()) == pictures
    for path, call in zip(pictures, drawn, strict=True):
        assert matplotlib.image.imread(path).shape[:2] == (1200, 1530)
        scores = call['pred_scores']
        assert scores.min() >= 0.05
        assert scores.max() == pytest.approx(call['heatmap'].max())
        assert 'score \u2265 0.05' in call['title']


def test_data_alone(tool, drawn, tmp_path, succeed):
    succeed(tool, QUICKSTART, '--out-dir', tmp_path, '--split', 'train',
            '--indices', 20, 3, '--bev-range', -20, -10, 20, 10,
            '--size', 800, 600)
    assert matplotlib.image.imread(
        tmp_path / 'bev_0020.png').shape[:2] == (600, 800)
    assert [call['title'] for call in drawn] == [
        'train sample 20', 'train sample 3']
    for call in drawn:
        assert len(call['gt_bboxes']) > 5
        assert call['bev_range'] == [-20, -10, 20, 10]
        assert not {'pred_bboxes', 'heatmap'} & call.keys()


@pytest.mark.parametrize(('args', 'message'), [
    ([QUICKSTART, '--cfg-options', 'val_dataloader.dataset.data_root=no/'],
     "'no/' (val_dataloader.dataset.data_root) does not exist"),
    ([QUICKSTART, '--indices', '6', '1'],
     "--indices 6: the split 'val' has the samples 0 to 5"),
])
def test_errors(tool, drawn, tmp_path, monkeypatch, fail, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fail(tool, *args, '--out-dir', 'out')
    assert not (tmp_path / 'out').exists()


def test_training_samples_are_not_augmented(tool, cfg):
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
