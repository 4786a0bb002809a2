"""What TensorBoard gets of a real training, read back from its file."""
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import QUICKSTART
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from toy_training import make_runner

from sigplug.engine.hooks import (
    BEVImageHook,
    GeMPowerHook,
    HeatmapImageHook,
    HeatmapSaturationHook,
    LiveLookHook,
)
from sigplug.errors import UserError

SWITCH = {'default_hooks.live.type': 'sigplug.LiveLookHook'}
P = 'p/pts_voxel_encoder.pfn_layers.0.gem'
HEATMAP = 'heatmap_beside_target'
# The picture of a heatmap of 128 x 128 cells.
CELL, FRAME, SIDE = 4, 4, 512
RED = (184, 46, 10)
# In nuScenes, x of the LiDAR points to the right of the vehicle.
EGO_YAW = np.pi / 2


class Witness(Hook):
    """Keeps what the pictures and the values are to be compared with."""

    def before_train(self, runner):
        self.p, self.maps, self.boxes, self.found = [], [], [], {}
        runner.model.pts_bbox_head.register_forward_hook(self.keep)

    def keep(self, head, inputs, outputs):
        logits, = (task[0]['heatmap'].detach() for task in outputs)
        if head.training:
            self.maps.append(logits[0].double().sigmoid().amax(0).numpy())

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        p = runner.model.pts_voxel_encoder.pfn_layers[0].gem.p
        self.p.append(p.item())
        boxes = data_batch['data_samples'][0].gt_instances_3d.bboxes_3d
        self.boxes.append(boxes.tensor[:, :2].numpy())

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        for sample in outputs:
            key = runner.iter, sample.sample_idx
            self.found[key] = sample.pred_instances_3d.scores_3d.numpy()


def read_events(work_dir):
    folder, = work_dir.glob('*/vis_data')
    # All images, where TensorBoard shows ten.
    events = EventAccumulator(str(folder), size_guidance=dict(images=0))
    return events.Reload(), folder


def pixels(event):
    import io
    return np.array(Image.open(io.BytesIO(event.encoded_image_string)))


@pytest.fixture(scope='module')
def training(tmp_path_factory, synthetic_nuscenes):
    """Two epochs of two iterations of the quickstart, with the switch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
        cfg = Config.fromfile(QUICKSTART)
        drawn = []

        def draw_bev(*args, **kwargs):
            drawn.append((args, kwargs))
            return real(*args, **kwargs)

        import sigplug.visualization
        real = sigplug.visualization.draw_bev
        patch.setattr(sigplug.visualization, 'draw_bev', draw_bev)
        work_dir = tmp_path_factory.mktemp('live')
        cfg.merge_from_dict({
            **SWITCH,
            # A hook that the config has already is taken as it is.
            'default_hooks.bev': dict(
                type='sigplug.BEVImageHook', num_samples=2, score_thr=0.11),
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
    events, folder = read_events(work_dir)
    return SimpleNamespace(runner=runner, witness=witness, events=events,
                           folder=folder, drawn=drawn)


def test_scalars_are_those_of_the_log(training):
    """Losses, shares and p, with the steps of the logger."""
    events = training.events
    names = set(events.Tags()['scalars'])
    assert {'loss', 'task0.loss_heatmap', 'task0.loss_bbox', 'lr', P,
            *(f'task0.{name}' for name in (
                'at_lower_clip', 'at_upper_clip', 'stuck'))} <= names
    log = [json.loads(line) for line in (
        training.folder / 'scalars.json').read_text().splitlines()]
    for name in names:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(record['step'], record[name])
                  for record in log if name in record]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert [event.step for event in events.Scalars('loss')] == [1, 2, 3, 4]


def test_p_is_the_parameter(training):
    found = [event.value for event in training.events.Scalars(P)]
    assert len(set(found)) == 4
    np.testing.assert_allclose(found, training.witness.p, rtol=1e-6)


def heatmap_images(training):
    events = training.events.Images(HEATMAP)
    # At the end of each epoch, which is shorter than the interval.
    assert [event.step for event in events] == [2, 4]
    for event in events:
        assert (event.width, event.height) == (
            2 * SIDE + 3 * FRAME, SIDE + 2 * FRAME)
    return [pixels(event) for event in events]


def cells(image, left):
    """One pixel of each cell of one of the two maps, the lowest y first."""
    half = image[FRAME:-FRAME, left:left + SIDE]
    return half[CELL // 2::CELL, CELL // 2::CELL][::-1].astype(int)


def test_target_is_brightest_at_the_boxes(training):
    """The cells that hold a centre, and no other ones."""
    for image, boxes in zip(heatmap_images(training),
                            training.witness.boxes[1::2], strict=True):
        column, row = np.floor((boxes + 51.2) / 0.8).astype(int).T
        peaks = np.zeros((128, 128), dtype=bool)
        peaks[row, column] = True
        assert peaks.sum() > 5
        target = cells(image, 2 * FRAME + SIDE)
        np.testing.assert_array_equal((target == RED).all(-1), peaks)
        whole = (image[:, 2 * FRAME + SIDE:] == RED).all(-1)
        assert whole.sum() == CELL**2 * peaks.sum()


def test_prediction_is_darker_where_its_score_is_higher(training):
    for image, scores in zip(heatmap_images(training),
                             training.witness.maps[1::2], strict=True):
        green = cells(image, FRAME)[..., 1]
        order = np.argsort(scores, axis=None)
        assert (np.diff(green.ravel()[order]) <= 0).all()
        assert len(set(green.flat)) > 20


def test_views_of_the_validation(training):
    """Two of the six samples, after each epoch."""
    tags = ['bev_val_1', 'bev_val_4']
    assert set(training.events.Tags()['images']) == {*tags, HEATMAP}
    images = {}
    for tag in tags:
        events = training.events.Images(tag)
        assert [event.step for event in events] == [2, 4]
        assert {(e.width, e.height) for e in events} == {(1530, 1200)}
        images[tag] = [pixels(event) for event in events]
        assert (images[tag][0] != images[tag][1]).any()
        # The same for the backend of the config.
        for step, image in zip((2, 4), images[tag], strict=True):
            saved = Image.open(
                training.folder / f'vis_image/{tag}_{step}.png')
            np.testing.assert_array_equal(image, saved)


def test_views_hold_the_truth_and_the_predictions(training):
    dataset = training.runner.val_dataloader.dataset
    keys = [(2, 1), (2, 4), (4, 1), (4, 4)]
    shown = 0
    for key, (args, drawn) in zip(keys, training.drawn, strict=True):
        step, index = key
        assert f'sample {index}, iteration {step}:' in drawn['title']
        data = dataset[index]
        np.testing.assert_array_equal(args[0], data['inputs']['points'])
        # mmdet3d's own leaves out what has no points.
        seen = drawn['gt_num_points'] > 0
        np.testing.assert_allclose(
            drawn['gt_bboxes'][seen][:, :2],
            data['data_samples'].eval_ann_info['gt_bboxes_3d'].bev[:, :2],
            rtol=1e-5)
        scores = training.witness.found[key]
        np.testing.assert_array_equal(
            drawn['pred_scores'], scores[scores >= np.float32(0.11)])
        # Decoded are the peaks, the highest of them first.
        assert drawn['heatmap'].max() == pytest.approx(scores.max())
        assert drawn['heatmap_extent'] == pytest.approx(
            (-51.2, -51.2, 51.2, 51.2))
        assert drawn['class_names'] == dataset.metainfo['classes']
        assert drawn['ego_yaw'] == pytest.approx(EGO_YAW)
        shown += len(drawn['pred_scores'])
    assert shown > 0


def test_each_hook_is_there_once_and_watches_no_longer(training):
    kinds = Counter(type(hook) for hook in training.runner.hooks)
    for kind in (LiveLookHook, HeatmapSaturationHook, HeatmapImageHook,
                 GeMPowerHook, BEVImageHook):
        assert kinds[kind] == 1
    by_kind = {type(hook): hook for hook in training.runner.hooks}
    # That of the logger where the config has none.
    assert by_kind[GeMPowerHook].interval == 1
    assert by_kind[HeatmapSaturationHook].interval == 20
    head = training.runner.model.pts_bbox_head
    assert head.heatmap_observers == [] and not any(
        hook.__name__ == '_keep' for hook in head._forward_hooks.values())


@pytest.mark.parametrize('logger, interval', [
    (dict(type='LoggerHook', interval=7), 7), (None, 50)])
def test_values_come_as_often_as_those_of_the_log(tmp_path, monkeypatch,
                                                  synthetic_nuscenes,
                                                  logger, interval):
    monkeypatch.setenv('SIGPLUG_DATA_ROOT', f'{synthetic_nuscenes}/')
    cfg = Config.fromfile(QUICKSTART)
    cfg.merge_from_dict({
        **SWITCH, 'default_hooks.logger': logger, 'work_dir': str(tmp_path),
        'log_level': 'ERROR'})
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner.call_hook('before_run')
    found = {type(hook): hook.interval for hook in runner.hooks
             if isinstance(hook, (GeMPowerHook, HeatmapSaturationHook))}
    assert found == {GeMPowerHook: interval, HeatmapSaturationHook: interval}


# --- without what there is to see ------------------------------------------


@pytest.mark.parametrize('name', ['LiveLookHook', 'sigplug.LiveLookHook'])
@pytest.mark.parametrize('scope', ['mmengine', 'mmdet3d'])
def test_names(name, scope):
    with DefaultScope.overwrite_default_scope(scope):
        assert type(HOOKS.build(dict(type=name))) is LiveLookHook


@pytest.mark.parametrize('priority', [None, 'LOWEST', 'HIGHEST'])
def test_another_model_has_its_losses(tmp_path, monkeypatch, priority):
    """One word for what it lacks, at the start and in the validation."""
    said = []
    for name in ('live_look', 'bev_image'):
        monkeypatch.setattr(
            f'sigplug.engine.hooks.{name}.print_log',
            lambda text, *args, **kwargs: said.append(text))
    runner = make_runner(tmp_path)
    runner.register_hook(LiveLookHook(), priority)
    runner.train()
    events, _ = read_events(tmp_path)
    assert [event.step for event in events.Scalars('loss')] == [1, 2]
    assert len(events.Scalars('toy/score')) == 2
    assert events.Tags()['images'] == []
    start, validation = said
    assert 'heatmaps, since no head is like sigplug.CenterHead' in start
    assert 'p, since the model has no GeM' in start
    assert 'no pictures' in validation and 'ToyDataset' in validation


def test_a_backend_of_the_config_is_taken(tmp_path):
    runner = make_runner(tmp_path, visualizer=dict(
        type='Visualizer', vis_backends=[
            dict(type='TensorboardVisBackend', save_dir=str(tmp_path / 'tb'))
        ]))
    runner.register_hook(LiveLookHook())
    runner.train()
    assert not list(tmp_path.glob('*/vis_data/events*'))
    assert len(list((tmp_path / 'tb').glob('events*'))) == 1


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'sigplug.engine.hooks.live_look.find_spec', lambda name: None)
    runner = make_runner(tmp_path)
    runner.register_hook(LiveLookHook())
    with pytest.raises(UserError, match='pip install tensorboard'):
        runner.train()


def test_there_is_no_file_before_there_is_something_to_write(tmp_path):
    runner = make_runner(tmp_path)
    runner.register_hook(LiveLookHook())
    runner.call_hook('before_run')
    runner.call_hook('after_run')
    assert not list(tmp_path.glob('**/events*'))
