"""Random heads and boxes: what no chosen example would find.

``make fuzz`` runs these tests with many more examples than ``make test``.
"""
import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet3d.models.dense_heads import CenterHead as StockHead
from mmengine.registry import DefaultScope

from sigplug.models.dense_heads import CenterHead

from .test_dense_heads.center_heads import compare_targets, config, instances
from .test_dense_heads.stock_twins import spread_scores

SEEDS = st.integers(0, 2**31 - 1)


class Setup:
    """A random config of both heads, and the boxes that they look for."""

    def __init__(self, data):
        def one_of(*values):
            return data.draw(st.sampled_from(values))

        def between(low, high):
            return data.draw(st.integers(low, high))

        self.velocity = one_of(False, True)
        classes = [between(1, 3) for _ in range(between(1, 3))]
        factor = one_of(1, 2, 4)
        self.size = between(3, 12), between(3, 12)  # width and height
        voxel = [one_of(0.25, 0.1, 0.075) for _ in range(2)]
        self.low = [one_of(-16.0, 0.0, -3.7) for _ in range(2)]
        grid = [n * factor + between(0, factor - 1) for n in self.size]
        self.cell = [v * factor for v in voxel]
        high = [o + g * v for o, g, v in zip(self.low, grid, voxel)]
        self.weights = [one_of(1.0, 0.2, 0.0, 3.0) for _ in range(10)]
        if not self.velocity:
            # The stock head always has a velocity: it counts for nothing.
            self.weights[8:] = [0.0, 0.0]
        self.heads = dict(reg=(2, between(1, 2)), height=(1, 2), dim=(3, 1),
                          rot=(2, 2), vel=(2, 1))
        shared = dict(out_size_factor=factor, voxel_size=voxel)
        self.focal = dict(alpha=one_of(2.0, 1.0), gamma=one_of(4.0, 2.0),
                          loss_weight=one_of(1.0, 0.25))
        self.cfg = config(
            in_channels=4, share_conv_channel=4,
            tasks=[dict(num_class=n, class_names=[
                f'task{i}_{j}' for j in range(n)])
                for i, n in enumerate(classes)],
            num_heatmap_convs=between(1, 2), separate_head=dict(
                type='SeparateHead', init_bias=-2.19,
                final_kernel=one_of(1, 3), head_conv=4),
            norm_bbox=one_of(False, True))
        self.cfg['bbox_coder'].update(shared, pc_range=self.low)
        self.cfg['loss_bbox']['loss_weight'] = one_of(0.25, 2.0)
        self.cfg['train_cfg'].update(
            grid_size=[*grid, 40], voxel_size=[*voxel, 0.2],
            out_size_factor=factor, dense_reg=between(1, 2),
            gaussian_overlap=one_of(0.1, 0.5, 0.7),
            # Often fewer than there are.
            max_objs=one_of(1, 1, 2, 6), min_radius=between(0, 3),
            point_cloud_range=[*self.low, -5.0, *high, 3.0])
        self.seed, self.scale = data.draw(SEEDS), one_of(2.0, 4.0)
        self.samples = [self.draw_boxes(data.draw, sum(classes))
                        for _ in range(between(1, 2))]

    def draw_boxes(self, draw, num_classes):
        """Inside, outside and on the edges of the map, also too many."""
        rows = []
        for _ in range(draw(st.integers(0, 9))):
            places = [
                draw(st.floats(-1.5, n + 1.5, width=32) | st.sampled_from(
                    (0.0, 1.0, n - 0.5, float(n), -0.99, -1.0)))
                for n in self.size]
            center = [low + at * size for low, at, size in zip(
                self.low, places, self.cell)]
            flat = [draw(st.sampled_from((0.0, -1.0, 1e-4, 0.5, 2.0, 60.0)) |
                         st.floats(0.1, 6)) for _ in range(2)]
            rows.append([
                *center, draw(st.floats(-3, 3)), *flat,
                draw(st.floats(0.1, 5)), draw(st.floats(-7, 7)),
                draw(st.floats(-9, 9)), draw(st.floats(-9, 9))])
        labels = [draw(st.integers(-1, num_classes)) for _ in rows]
        return torch.tensor(rows).reshape(-1, 9), torch.tensor(
            labels, dtype=torch.long)

    def instances(self, size=9):
        return [instances(boxes[:, :size].clone(), labels.clone())
                for boxes, labels in self.samples]

    def build(self, cls, velocity=True, loss=None):
        cfg, heads = copy.deepcopy(self.cfg), dict(self.heads)
        size = 10 if velocity else 8
        if not velocity:
            del heads['vel']
        cfg['bbox_coder']['code_size'] = size - 1
        cfg['train_cfg']['code_weights'] = self.weights[:size]
        loss = loss or dict(type='mmdet.GaussianFocalLoss', reduction='mean')
        return cls(**dict(cfg, common_heads=heads,
                          loss_cls=dict(loss, **self.focal)))

    def both(self, loss=None):
        """The stock head, and ours, with the same weights."""
        torch.manual_seed(self.seed)
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            stock = self.build(StockHead)
            ours = self.build(CenterHead, self.velocity, loss)
        # Apart from each other and beyond the clip.
        spread_scores(stock, self.scale)
        state = stock.state_dict()
        ours.load_state_dict(
            {key: state[key] for key in ours.state_dict()}, strict=True)
        return stock, ours

    def features(self):
        width, height = self.size
        return [torch.randn(
            len(self.samples), 4, height, width,
            generator=torch.Generator().manual_seed(self.seed))]


@given(st.data())
def test_targets_of_center_head(data):
    setup = Setup(data)
    stock, ours = setup.both()
    compare_targets(ours.get_targets(setup.instances(ours.box_size)),
                    stock.get_targets(setup.instances()))


@given(st.data())
def test_losses_of_center_head(data):
    """With the clip in the activation, or in a loss of logits."""
    setup = Setup(data)
    clip = data.draw(st.sampled_from((None, 1e-4)))
    stock, ours = setup.both(clip and dict(
        type='GaussianFocalLossWithLogits', clip=clip))
    x = setup.features()
    got = ours.loss_by_feat(ours(x), setup.instances(ours.box_size))
    expected = stock.loss_by_feat(stock(x), setup.instances())
    # To 1e-6, and their gradients to 1e-6 of the largest.
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.isfinite()
        torch.testing.assert_close(
            got[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key:
            f'{k}: {m}')
    sum(got.values()).backward()
    sum(expected.values()).backward()
    params = dict(stock.named_parameters())
    largest = max(param.grad.abs().max().item() for param in params.values()
                  if param.grad is not None)
    for key, param in ours.named_parameters():
        torch.testing.assert_close(
            param.grad, params[key].grad, rtol=1e-6, atol=1e-6 * largest,
            msg=lambda m, k=key: f'{k}: {m}')
