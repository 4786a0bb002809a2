"""Which samples are drawn, and what is not; the pictures of a training are in
test_live_look.py."""
from types import SimpleNamespace

import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import DataLoader

from sigplug.engine.hooks import BEVImageHook
from sigplug.visualization.figure import new_figure


class Dataset(BaseDataset):
    METAINFO = dict(classes=('car', ))

    def load_data_list(self):
        return [{} for _ in range(11)]


@pytest.fixture
def quick(monkeypatch):
    """Empty pictures: what counts is how many."""
    monkeypatch.setattr('sigplug.visualization.draw_bev',
                        lambda *args, **kwargs: new_figure((200, 200)))


def validate(hook, dataset, size=4, points='points',
             found='pred_instances_3d'):
    """A validation by itself, whose samples have one box each."""
    drawn = []
    runner = SimpleNamespace(
        val_dataloader=DataLoader(dataset, batch_size=size),
        model=nn.Linear(1, 1), _train_loop=dict(type='never built'),
        visualizer=SimpleNamespace(
            add_image=lambda name, image, step: drawn.append(name)))
    hook.before_val_epoch(runner)
    for number in range(-(-11 // size)):
        indices = range(number * size, min(11, number * size + size))
        batch = dict(inputs={points: [torch.rand(9, 4) for _ in indices]})
        outputs = [
            Det3DDataSample(
                metainfo=dict(sample_idx=i),
                **{found: InstanceData(
                    bboxes_3d=LiDARInstance3DBoxes(torch.ones(1, 7)),
                    labels_3d=torch.zeros(1, dtype=int),
                    scores_3d=torch.ones(1))}) for i in indices]
        hook.before_val_iter(runner, number, batch)
        hook.after_val_iter(runner, number, batch, outputs)
    return [int(name.removeprefix('bev_val_')) for name in drawn]


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('num, size, chosen', [
    (4, 4, [1, 4, 6, 9]), (1, 3, [5]),
    (30, 4, list(range(11)))])
def test_evenly_spaced(num, size, chosen):
    hook = BEVImageHook(num_samples=num)
    for _ in range(2):
        assert validate(hook, Dataset(), size) == chosen


@pytest.mark.parametrize('dataset, names, word', [
    (list(range(11)), dict(), 'wrapped in another (list)'),
    (Dataset(), dict(points='img'), 'no LiDAR points or no boxes in space'),
    (Dataset(), dict(found='pred_instances'), 'no boxes in space'),
])
def test_another_kind_of_data_is_named_once(said, dataset, names, word):
    hook = BEVImageHook()
    for _ in range(2):
        assert validate(hook, dataset, **names) == []
    text, = said
    assert word in text


def test_what_cannot_be_drawn_does_not_end_the_training(said, monkeypatch):
    def fail(*args, **kwargs):
        raise IndexError('no colour')

    monkeypatch.setattr('sigplug.visualization.draw_bev', fail)
    assert validate(BEVImageHook(num_samples=1), Dataset()) == []
    assert said == [
        'WARNING: BEVImageHook: no picture of the sample 5: no colour']
