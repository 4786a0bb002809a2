"""Predictions of ``sigplug.CenterHead`` against mmdet3d's, bit for bit."""
import copy
import math
import random

import pytest
import torch
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from mmdet3d.structures import LiDARInstance3DBoxes

from sigplug.models.dense_heads import CenterHead, center_decoding

from .center_heads import (
    CLASSES,
    HEIGHT,
    WIDTH,
    NoReading,
    both,
    config,
    cuda_waits,
)

METAS = [dict(box_type_3d=LiDARInstance3DBoxes)] * 2
WIDE = config()['bbox_coder']['post_center_range']


@pytest.fixture(scope='module')
def heads():
    """Those of mmdet3d and ours, for 7 and 9 box values."""
    return {velocity: both(velocity=velocity) for velocity in (False, True)}


def maps(velocity, step=None, seed=0, confidence=3.0, equal_scores=True):
    """Random predictions; rounded to a step, many of them are equal."""
    generator = torch.Generator().manual_seed(seed)
    channels = dict(reg=2, height=1, dim=3, rot=2)
    if velocity:
        channels['vel'] = 2
    preds = []
    for names in CLASSES:
        pred = {}
        for name, count in dict(channels, heatmap=len(names)).items():
            x = torch.randn(2, count, HEIGHT, WIDTH, generator=generator)
            if name == 'heatmap':
                x = confidence * x - 2
            if step and (equal_scores or name != 'heatmap'):
                x = (x / step).round() * step
            pred[name] = x
        preds.append([pred])
    return tuple(preds)


def convert(preds, to):
    """The predictions in another dtype, or on another device."""
    return tuple([{name: x.to(to) for name, x in pred.items()}]
                 for pred, in preds)


def randomise(heads, nms_type, seed, equal_scores):
    """Give both heads the same random limits, and return maps for them."""
    rng = random.Random(seed)
    velocity = rng.random() < 0.5
    norm_bbox = rng.random() < 0.5
    for head in heads[velocity]:
        draw = random.Random(seed).choice
        head.norm_bbox = norm_bbox
        head.bbox_coder.score_threshold = draw([None, 0.0, 0.1, 0.5])
        head.bbox_coder.max_num = draw([1, 10, 40])
        # The stock coder makes a tensor of it.
        head.bbox_coder.post_center_range = draw(
            [WIDE, [-9.0, -9, -2, 6, 7, 2]])
        head.test_cfg = dict(
            nms_type=nms_type, score_threshold=draw([0.01, 0.1, 0.3]),
            pre_max_size=draw([None, 5, 30]), post_max_size=draw([3, 100]),
            nms_thr=draw([0.01, 0.2, 0.7]),
            min_radius=[draw([4, 12, 1, 0.85, 0.175]) for _ in CLASSES],
            post_center_limit_range=draw([WIDE, [-5.0, -5, -1, 6, 7, 1]]))
    return heads[velocity], maps(
        velocity, rng.choice([None, 0.01, 0.125, 1]), seed,
        rng.choice([0.5, 3, 30]) if equal_scores else 3.0, equal_scores)


def usual(heads, nms_type, max_num=40):
    """Give both heads the limits of the config."""
    for head in heads[True]:
        head.norm_bbox = True
        head.bbox_coder.score_threshold = 0.1
        head.bbox_coder.max_num = max_num
        head.bbox_coder.post_center_range = WIDE
        head.test_cfg = dict(config()['test_cfg'], nms_type=nms_type)
    return heads[True]


def predict(head, preds, metas=METAS):
    """Return boxes, scores and labels of each sample."""
    found = head.predict_by_feat(copy.deepcopy(preds), metas)
    return [(r.bboxes_3d.tensor, r.scores_3d, r.labels_3d) for r in found]


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert x.equal(y) and x.dtype == y.dtype


@pytest.fixture(params=['loop', 'all pairs'])
def way(request, monkeypatch):
    """The way of a CPU, and that of a GPU on a CPU."""
    monkeypatch.setattr(
        center_decoding, '_loops', lambda x: request.param == 'loop')
    return request.param


NMS_TYPES = pytest.mark.parametrize('nms_type', ['circle', 'rotate'])


def check_random_maps(heads, nms_type, way, seeds):
    num_boxes = 0
    for seed in seeds:
        # For equal scores all pairs are left to the loop; where the boxes
        # are rotated, upstream's sort of them is not stable.
        (stock, ours), preds = randomise(
            heads, nms_type, seed, way == 'loop' or (
                nms_type == 'circle' and seed % 2 == 0))
        expected = predict(stock, preds)
        assert_equal(predict(ours, preds), expected)
        num_boxes += sum(len(scores) for _, scores, _ in expected)
    assert num_boxes > 20 * len(seeds)


@NMS_TYPES
def test_predictions_equal_mmdet3ds(heads, nms_type, way):
    check_random_maps(heads, nms_type, way, range(8))


@pytest.mark.slow
@NMS_TYPES
def test_predictions_of_1000_maps_equal_mmdet3ds(heads, nms_type, way):
    check_random_maps(heads, nms_type, way, range(8, 508))


@NMS_TYPES
def test_long_chains_of_boxes(heads, nms_type, monkeypatch):
    """After a single round, of boxes that hide the next in a row."""
    stock, ours = usual(heads, nms_type)
    preds = maps(True)
    for i, (pred, ) in enumerate(preds):
        column = torch.arange(WIDTH * 1.0)
        pred['heatmap'][:] = -9.0
        pred['heatmap'][:, :, 5] = 2 - column / (9 + i)
        pred['reg'][:] = 0.0
        pred['dim'][:] = math.log(1.8)
    expected = predict(stock, preds)
    assert len(expected[0][1]) > 20
    monkeypatch.setattr(center_decoding, '_loops', lambda x: False)
    for rounds in (1, 16):
        monkeypatch.setattr(center_decoding, 'ROUNDS', rounds)
        assert_equal(predict(ours, preds), expected)


@NMS_TYPES
@pytest.mark.parametrize('equal', [False, True])
def test_reads_values_at_most_twice(heads, nms_type, equal, monkeypatch):
    """On a GPU each would wait."""
    _, ours = usual(heads, nms_type, max_num=8)
    preds = maps(True, step=1 if equal else None)
    reads = []

    def read(x):
        reads.append(x)
        return x.numpy()

    monkeypatch.setattr(center_decoding, '_loops', lambda x: False)
    monkeypatch.setattr(center_decoding, '_read', read)
    # On the host, and after the reading.
    monkeypatch.setattr(center_decoding, '_one_by_one',
                        lambda *args: torch.zeros(1).long().numpy())
    ours.predict_by_feat(preds, METAS)  # which keeps the constants
    reads.clear()
    with NoReading() as mode:
        ours.predict_by_feat(preds, METAS)
    assert len(reads) == (2 if equal and nms_type == 'circle' else 1)
    # What was read comes back, as rows.
    assert mode.arrays == len(reads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@NMS_TYPES
def test_waits_at_most_twice_for_cuda(nms_type):
    stock, ours = (head.cuda() for head in both())
    preds = convert(maps(True), 'cuda')
    for head in (stock, ours):
        head.test_cfg['nms_type'] = nms_type
    expected = predict(stock, preds)
    assert_equal(predict(ours, preds), expected)
    with cuda_waits() as waits:
        ours.predict_by_feat(preds, METAS)
    assert len(waits) <= 2


@pytest.mark.parametrize('rounds', [1, 16])
def test_a_type_of_nms_for_each_task(heads, way, rounds, monkeypatch):
    monkeypatch.setattr(center_decoding, 'ROUNDS', rounds)
    (stock, ours), preds = usual(heads, 'circle'), maps(True)
    kinds = ['circle', 'rotate', 'rotate', 'circle', 'circle', 'rotate']
    of_kind = {}
    for kind in ('circle', 'rotate'):
        stock.test_cfg['nms_type'] = kind
        of_kind[kind] = predict(stock, preds)
    # The classes of a task follow one another, and so do its boxes.
    expected = []
    for sample in range(2):
        parts, first = [], 0
        for kind, names in zip(kinds, CLASSES, strict=True):
            values = of_kind[kind][sample]
            own = (values[2] >= first) & (values[2] < first + len(names))
            parts.append([value[own] for value in values])
            first += len(names)
        expected.append([torch.cat(part) for part in zip(*parts)])
    ours.test_cfg['nms_type'] = kinds
    assert_equal(predict(ours, preds), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_decoded_in_float32(heads, dtype, way):
    _, ours = usual(heads, 'circle')
    preds = convert(maps(True), dtype)
    assert_equal(predict(ours, preds),
                 predict(ours, convert(preds, torch.float32)))


class Decoder(torch.nn.Module):
    """A traced one must not leave its own constants to the next call."""

    def __init__(self, head):
        super().__init__()
        self.args = head.bbox_coder, head.norm_bbox

    def forward(self, preds):
        return tuple(center_decoding.decode(preds, *self.args))


def test_decodes_after_an_export(heads):
    _, ours = usual(heads, 'rotate')
    preds, decoder = [pred for pred, in maps(True)], Decoder(ours)
    center_decoding._kept_constant.cache_clear()
    exported = torch.export.export(decoder, (preds, ), strict=False).module()
    expected = center_decoding.decode(preds, *decoder.args)
    for got, want in zip(exported(preds), expected, strict=True):
        assert got.equal(want)


class OwnCoder(CenterPointBBoxCoder):
    def decode(self, *args, **kwargs):
        return [dict(found, scores=found['scores'] / 2)
                for found in super().decode(*args, **kwargs)]


class OwnDetections(CenterHead):
    def get_task_detections(self, *args):
        return [dict(found, scores=found['scores'] / 2)
                for found in super().get_task_detections(*args)]


def test_a_single_box_overlaps_none(monkeypatch):
    """On CUDA mmcv's kernel fails for no pairs."""
    monkeypatch.setattr(center_decoding, 'box_iou_rotated', None)
    assert not center_decoding._overlaps(
        torch.rand(2, 3, 1, 5), 0.1).any()


def test_custom_decoding(heads):
    (_, ours), preds = usual(heads, 'rotate'), maps(True)
    expected = predict(ours, preds)
    own = copy.deepcopy(ours)
    own.bbox_coder.__class__ = OwnCoder
    own.test_cfg['score_threshold'] /= 2
    other = copy.deepcopy(ours)
    other.__class__ = OwnDetections
    for head in (own, other):
        for (_, found, _), (_, scores, _) in zip(
                predict(head, preds), expected, strict=True):
            assert found.equal(scores / 2) and len(scores) > 0
