"""Batches with samples without points, through whole detectors."""
import copy

import pytest
import torch
from conftest import QUICKSTART
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from test_configs_run import load, shrink

from ..test_dense_heads.center_heads import NoReading, cuda_waits

AREA = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]


def build(kind, preprocessor='sigplug.Det3DDataPreprocessor'):
    model = load(QUICKSTART.with_name(
        QUICKSTART.name.replace('pillar', kind))).model
    shrink(model, 4)
    model.data_preprocessor.type = preprocessor
    # All that an untrained head finds.
    model.pts_bbox_head.bbox_coder.update(score_threshold=0.0, max_num=60)
    model.test_cfg.pts.score_threshold = 0.0
    torch.manual_seed(0)
    return MODELS.build(model)


def cloud(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor(
        [24.0, 24, 4, 1])


def batch(*counts):
    samples = []
    for i in range(len(counts)):
        sample = Det3DDataSample(metainfo=dict(
            box_type_3d=LiDARInstance3DBoxes))
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(
                torch.tensor([[3. + i, -4, -1, 4, 2, 1.5, 0.3, 1, 0]]),
                box_dim=9),
            labels_3d=torch.tensor([0]))
        samples.append(sample)
    return dict(
        inputs=dict(points=[cloud(n, i) for i, n in enumerate(counts)]),
        data_samples=samples)


def predict(model, data):
    with torch.no_grad():
        found = model.eval().test_step(copy.deepcopy(data))
    return [sample.pred_instances_3d for sample in found]


KINDS = pytest.mark.parametrize('kind', ['pillar', 'dv-pillar'])
EMPTY = pytest.mark.parametrize('counts', [
    (900, 0, 0), (0, 900, 0, 700), (0, 0)])


@KINDS
@EMPTY
def test_each_sample_is_predicted_as_if_alone(kind, counts):
    model = build(kind)
    data = batch(*counts)
    found = predict(model, data)
    assert len(found) == len(counts)
    for i, count in enumerate(counts):
        if count == 0:
            assert len(found[i]) == 0
            continue
        alone, = predict(model, dict(
            inputs=dict(points=[data['inputs']['points'][i]]),
            data_samples=[data['data_samples'][i]]))
        assert len(alone) > 0
        torch.testing.assert_close(
            found[i].bboxes_3d.tensor, alone.bboxes_3d.tensor)
        torch.testing.assert_close(found[i].scores_3d, alone.scores_3d)


@KINDS
@EMPTY
def test_losses_and_gradients_are_finite(kind, counts):
    model = build(kind).train()
    data = model.data_preprocessor(batch(*counts), True)
    losses = model(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters()
               if p.grad is not None)
    assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize('encoder', [
    dict(type='HardSimpleVFE', num_features=4),
    dict(type='PillarFeatureNet', in_channels=4, feat_channels=[8],
         with_distance=True, voxel_size=[0.4, 0.4, 8],
         point_cloud_range=AREA)], ids=lambda encoder: encoder['type'])
def test_encoders_of_mmdet3d_stay_finite(encoder):
    """They divide by the number of points."""
    data = build('pillar').data_preprocessor(batch(900, 0), True)
    voxels = data['inputs']['voxels']
    assert voxels['coors'][-1].tolist() == [1, 0, 0, 0]
    features = MODELS.build(encoder)(
        voxels['voxels'], voxels['num_points'], voxels['coors'])
    assert features.isfinite().all()
    assert encoder['type'] != 'HardSimpleVFE' or not features[-1].any()


@KINDS
def test_points_out_of_range(kind):
    """Without PointsRangeFilter in the pipeline."""
    model = build(kind)
    data = batch(900, 50)
    data['inputs']['points'][1] += 500
    assert len(predict(model, data)) == 2


@KINDS
def test_changes_nothing_else(kind):
    ours, stock = (
        build(kind, name).data_preprocessor
        for name in ('sigplug.Det3DDataPreprocessor',
                     'mmdet3d.Det3DDataPreprocessor'))
    found, expected = (
        preprocessor(batch(900, 0, 800), True)['inputs']['voxels']
        for preprocessor in (ours, stock))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_head_behind_upstreams_gives_the_remedy():
    model = build('pillar', 'mmdet3d.Det3DDataPreprocessor')
    remedy = pytest.raises(
        ValueError, match='of 1 samples, but the batch has 2: .*sigplug.Det3D')
    with remedy:
        predict(model, batch(900, 0))
    data = model.data_preprocessor(batch(900, 0), True)
    with remedy:
        model.train()(**data, mode='loss')


@pytest.mark.parametrize('change', [
    dict(grid_size=[32, 64, 1]), dict(out_size_factor=4)])
def test_grid_that_does_not_match(change):
    model = build('pillar').train()
    model.pts_bbox_head.train_cfg.update(change)
    data = model.data_preprocessor(batch(900), True)
    with pytest.raises(ValueError, match=r'\(10, 32, 32\), .*train_cfg'):
        model(**data, mode='loss')


@pytest.fixture
def fine_grid(monkeypatch):
    """Take any grid for one in which a sort is faster."""
    monkeypatch.setattr('sigplug.models.data_preprocessors.'
                        'det3d_data_preprocessor.MANY_CELLS', 0)


@pytest.mark.parametrize('training', [True, False])
def test_voxels_of_a_fine_grid_are_those_of_mmdet3d(training, fine_grid):
    """Bit for bit, in order, with both limits at work."""
    cfg = dict(voxel=True, voxel_layer=dict(
        max_num_points=3, max_voxels=(150, 250), voxel_size=[1.6, 1.6, 2],
        point_cloud_range=AREA))
    clouds = [cloud(n, n) for n in (900, 0, 40)]
    stock, ours = (
        MODELS.build(dict(cfg, type=kind)).train(training).voxelize(
            clouds, None)
        for kind in ('Det3DDataPreprocessor', 'sigplug.Det3DDataPreprocessor'))
    assert stock.keys() == ours.keys()
    for name, value in stock.items():
        assert ours[name].equal(value), name
        assert ours[name].dtype == value.dtype


@pytest.mark.parametrize('counts', [(900, 40), (900, 0)])
def test_reads_values_once(counts, fine_grid, monkeypatch):
    """On a GPU that would wait."""
    preprocessor = build('pillar').data_preprocessor
    tolist, read = torch.Tensor.tolist, []
    monkeypatch.setattr(
        torch.Tensor, 'tolist', lambda x: read.append(x) or tolist(x))
    with NoReading():
        preprocessor.voxelize([cloud(n) for n in counts], None)
    # The other one is the grid, on the host.
    assert [x.shape for x in read] == [(3, ), (len(counts), )]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('counts', [(900, 40), (900, 0)])
def test_waits_once_for_cuda(counts):
    preprocessor = build('pillar').data_preprocessor
    clouds = [cloud(n) for n in counts]
    expected = preprocessor.voxelize(clouds, None)
    points = [x.cuda() for x in clouds]
    preprocessor.voxelize(points, None)
    with cuda_waits() as waits:
        found = preprocessor.voxelize(points, None)
    assert len(waits) == 1
    for name, value in expected.items():
        assert found[name].cpu().equal(value), name
