"""What TensorBoard gets of a real training, read back from its file."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from test_configs_run import shrink
from toy_training import make_runner

import sigplug.visualization
from sigplug.engine.hooks import (
    BEVImageHook,
    GeMPowerHook,
    HeatmapImageHook,
    HeatmapSaturationHook,
    LiveLookHook,
)
from sigplug.errors import UserError
from sigplug.visualization import draw_heatmap_pair

P = 'p/pts_voxel_encoder.pfn_layers.0.gem'
HEATMAP = 'heatmap_beside_target'
VIEWS = ['bev_val_1', 'bev_val_4']


class Witness(Hook):
    """Keeps what the pictures and the values are to be compared with."""

    def before_train(self, runner):
        self.p, self.maps, self.found = [], [], {}
        self.head = runner.model.pts_bbox_head
        self.head.heatmap_observers.append(self.keep)

    def keep(self, task, logits, target):
        self.maps.append([logits[0].double().sigmoid().amax(0).numpy(),
                          target[0].amax(0).numpy()])

    def after_train_iter(self, runner, *args, **kwargs):
        p = runner.model.pts_voxel_encoder.pfn_layers[0].gem.p
        self.p.append(p.item())

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        for sample in outputs:
            key = runner.iter, sample.sample_idx
            self.found[key] = sample.pred_instances_3d.scores_3d.numpy()


@pytest.fixture(scope='module')
def training(tmp_path_factory, synthetic_nuscenes):
    """Two epochs of two iterations of the quickstart, with the switch."""
    drawn, draw_bev = [], sigplug.visualization.draw_bev

    def spy(points, **kwargs):
        drawn.append(dict(kwargs, points=points))
        return draw_bev(points, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        patch.setattr(sigplug.visualization, 'draw_bev', spy)
        cfg = Config.fromfile(QUICKSTART)
        shrink(cfg.model, 2)
        # Of this name alone: mmengine keeps visualizers by their names.
        cfg.visualizer.name = 'live look'
        work_dir = tmp_path_factory.mktemp('live')
        cfg.merge_from_dict({
            'default_hooks.live.type': 'sigplug.LiveLookHook',
            # A hook that the config has already is taken as it is.
            'default_hooks.bev': dict(
                type='sigplug.BEVImageHook', num_samples=2, score_thr=0.1),
            'default_hooks.logger.interval': 1,
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 1,
            'train_dataloader.batch_size': 1,
            'train_dataloader.dataset.indices': 2,
            'val_evaluator': dict(
                _delete_=True, type='DumpResults',
                out_file_path=str(work_dir / 'results.pkl')),
            **{f'{loader}_dataloader.{key}': value
               for loader in ('train', 'val')
               for key, value in dict(
                   num_workers=0, persistent_workers=False).items()},
        })
        cfg.work_dir = str(work_dir)
        cfg.log_level = 'ERROR'
        runner = Runner.from_cfg(cfg)
        witness = Witness()
        runner.register_hook(witness)
        runner.train()
    folder, = work_dir.glob('*/vis_data')
    # All images, where TensorBoard shows ten.
    events = EventAccumulator(str(folder), size_guidance=dict(images=0))
    return SimpleNamespace(runner=runner, witness=witness,
                           events=events.Reload(), folder=folder, drawn=drawn)


def test_scalars_have_the_steps_of_the_log(training):
    # Measured at the end of each epoch, and then repeated by the logger.
    measured = [f'task0.{name}' for name in (
        'at_lower_clip', 'at_upper_clip', 'stuck')]
    for name in ('loss', 'task0.loss_heatmap', 'lr', P, *measured):
        steps = [event.step for event in training.events.Scalars(name)]
        assert steps == [1, 2, 3, 4][name in measured:], name
    found = [event.value for event in training.events.Scalars(P)]
    assert len(set(found)) == 4
    np.testing.assert_allclose(found, training.witness.p, rtol=1e-6)


def read_images(training, tag):
    """Those of each epoch, the same for the backend of the config."""
    events = training.events.Images(tag)
    # At the end of each epoch, which is shorter than the intervals.
    assert [event.step for event in events] == [2, 4]
    for event in events:
        image = Image.open(io.BytesIO(event.encoded_image_string))
        saved = training.folder / f'vis_image/{tag}_{event.step}.png'
        np.testing.assert_array_equal(image, Image.open(saved))
        yield np.array(image)


def test_heatmaps(training):
    for image, maps in zip(read_images(training, HEATMAP),
                           training.witness.maps[1::2], strict=True):
        assert (maps[1] == 1).sum() > 5
        np.testing.assert_allclose(
            image.astype(int), draw_heatmap_pair(*maps),
            atol=2)  # one of its 256 colours


def test_views_hold_the_truth_and_the_predictions(training):
    """Two of the six samples, after each epoch."""
    assert set(training.events.Tags()['images']) == {*VIEWS, HEATMAP}
    for tag in VIEWS:
        first, last = read_images(training, tag)
        assert first.shape == (1200, 1530, 3) and (first != last).any()

    dataset = training.runner.val_dataloader.dataset
    keys = [(2, 1), (2, 4), (4, 1), (4, 4)]
    for key, drawn in zip(keys, training.drawn, strict=True):
        step, index = key
        assert f'sample {index}, iteration {step}:' in drawn['title']
        data = dataset[index]
        np.testing.assert_array_equal(drawn['points'],
                                      data['inputs']['points'])
        # mmdet3d's own leaves out what has no points.
        truth = data['data_samples'].eval_ann_info
        bboxes, seen = truth['gt_bboxes_3d'], drawn['gt_num_points'] > 0
        np.testing.assert_allclose(
            drawn['gt_bboxes'][seen][:, :2], bboxes.bev[:, :2], rtol=1e-5)
        np.testing.assert_allclose(
            drawn['gt_bboxes'][seen][:, 3:], bboxes.tensor[:, 3:], rtol=1e-5,
            atol=1e-6)
        np.testing.assert_array_equal(
            drawn['gt_labels'][seen], truth['gt_labels_3d'])
        scores = training.witness.found[key]
        np.testing.assert_array_equal(
            drawn['pred_scores'], scores[scores >= np.float32(0.1)])
        # Decoded are the peaks, the highest of them first.
        assert drawn['heatmap'].max() == pytest.approx(scores.max())
        # In nuScenes, x of the LiDAR points to the right of the vehicle.
        assert drawn['ego_yaw'] == pytest.approx(np.pi / 2)
    assert sum(len(drawn['pred_scores']) for drawn in training.drawn) > 0
    assert not all(drawn['gt_num_points'].all() for drawn in training.drawn)


def test_each_hook_is_there_once_and_watches_no_longer(training):
    kinds = [type(hook) for hook in training.runner.hooks]
    for kind in (LiveLookHook, HeatmapSaturationHook, HeatmapImageHook,
                 GeMPowerHook, BEVImageHook):
        assert kinds.count(kind) == 1
    by_kind = dict(zip(kinds, training.runner.hooks))
    # That of the logger where the config has none.
    assert by_kind[GeMPowerHook].interval == 1
    assert by_kind[HeatmapSaturationHook].interval == 20
    head = training.witness.head
    assert head.heatmap_observers == [training.witness.keep]
    assert not head._forward_hooks


def test_another_model_has_its_losses(tmp_path, said):
    """A word for what it lacks, at the start and in the validation."""
    runner = make_runner(tmp_path, visualizer=dict(
        type='Visualizer', vis_backends=[
            dict(type='TensorboardVisBackend', save_dir=str(tmp_path / 'tb'))
        ]))
    runner.register_hook(LiveLookHook())
    runner.train()
    # A backend of the config is taken as it is.
    assert not list(tmp_path.glob('*/vis_data/events*'))
    file, = (tmp_path / 'tb').glob('events*')
    events = EventAccumulator(str(file)).Reload()
    assert [event.step for event in events.Scalars('loss')] == [1, 2]
    assert events.Tags()['images'] == []
    start, validation = said
    assert 'heatmaps, since no head is like sigplug.CenterHead' in start
    assert 'p, since the model has no GeM' in start
    assert 'no pictures' in validation and 'ToyDataset' in validation


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'sigplug.engine.hooks.live_look.find_spec', lambda name: None)
    runner = make_runner(tmp_path)
    runner.register_hook(LiveLookHook())
    with pytest.raises(UserError, match='pip install tensorboard'):
        runner.train()
