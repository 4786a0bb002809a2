"""Targets of heads on images, for all boxes of a batch at once."""
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigplug.ops import gaussian_heatmap, gaussian_radius

from .heatmap_loss import count_peaks


class ImageCells(NamedTuple):
    """Cells in the feature maps of a batch, one per object."""

    #: x and y of ``N`` objects, int64, ``(N, 2)``.
    cell: Tensor
    #: The sample of each object, int64, ``(N, )``.
    sample: Tensor
    #: False leaves an object out, bool, ``(N, )``.
    keep: Tensor
    #: The number of samples, the height and the width of the maps.
    shape: tuple[int, int, int]

    def draw(self, radius: Tensor, labels: Tensor, num_classes: int,
             ellipses: Tensor | None = None) -> Tensor:
        """Return heatmaps with a peak of each object, ``(B, C, H, W)``."""
        batch, *size = self.shape
        keep = self.keep & (labels >= 0) & (labels < num_classes)
        return gaussian_heatmap(
            self.cell, torch.where(keep, radius.nan_to_num().int(), -1),
            torch.where(keep, self.sample * num_classes + labels, 0),
            batch * num_classes, (size[0], size[1]),
            ellipses=ellipses).view(batch, num_classes, *size)

    def scatter(self, values: Tensor) -> Tensor:
        """Write values ``(N, channels)`` into maps of zeros, the last wins.

        All cells that are kept lie inside the map.
        """
        batch, height, width = self.shape
        count = len(values)
        # What is left out goes to one more place, which is cut off.
        place = torch.where(
            self.keep, (self.sample * height + self.cell[:, 1]) * width
            + self.cell[:, 0], batch * height * width)
        last = place.new_full((batch * height * width + 1, ), -1)
        last.scatter_reduce_(
            0, place, torch.arange(count, device=place.device), 'amax')
        # An object of zeros for all other places.
        values = torch.cat((values, values.new_zeros(1, values.shape[1])))
        maps = values[last[:-1] % (count + 1)]
        return maps.view(batch, height, width, -1).permute(0, 3, 1, 2)


def box_radius(extent: Tensor, min_overlap: float) -> Tensor:
    """Return mmdet's radii of boxes ``(width, height)`` in cells, int64."""
    return gaussian_radius(
        extent[:, 1], extent[:, 0], min_overlap,
        exact=True).nan_to_num().clamp(0, 2**24).long()


def sample_of(values: list[Tensor]) -> Tensor:
    """Return the sample of each object of a batch, ``(N, )``."""
    return torch.cat([
        torch.full((len(x), ), i, device=x.device)
        for i, x in enumerate(values)])


def scale_of(feat_shape: tuple, batch_img_metas: list[dict]) -> float:
    """Return the cells of a map per pixel, the same along x and y."""
    image, size = batch_img_metas[0]['pad_shape'], feat_shape[2:]
    if image[0] * size[1] != image[1] * size[0]:
        raise ValueError(
            f'the map of {tuple(size)} cells and the padded image of '
            f'{tuple(image[:2])} pixels differ in shape: choose a '
            'pad_size_divisor that the stride of the neck divides')
    return size[1] / image[1]


def _to_cells(feat_shape: tuple, img_shape: tuple, x: Tensor,
              y: Tensor) -> Tensor:
    """Return pixels of the image in cells of the map, ``(N, 2)``."""
    return torch.stack((x * (feat_shape[3] / img_shape[1]),
                        y * (feat_shape[2] / img_shape[0])), 1)


class CenterNetTargets:
    """Targets of mmdet's ``CenterNetHead`` without its loop over boxes."""

    num_classes: int

    def get_targets(
            self, gt_bboxes: list[Tensor], gt_labels: list[Tensor],
            feat_shape: tuple, img_shape: tuple) -> tuple[dict, Tensor]:
        """Return mmdet's targets, from the same arguments.

        A box whose centre lies outside the map is left out; mmdet's loop
        raises an ``IndexError`` there.
        """
        boxes, labels = torch.cat(gt_bboxes), torch.cat(gt_labels)
        batch, _, height, width = feat_shape
        x1, y1, x2, y2 = boxes.unbind(1)
        scale = partial(_to_cells, feat_shape, img_shape)
        center = scale((x1 + x2) / 2, (y1 + y2) / 2)
        extent = scale(x2 - x1, y2 - y1)
        inside = ((center > -1).all(1) & (center[:, 0] < width)
                  & (center[:, 1] < height))
        cells = ImageCells(center.long(), sample_of(gt_bboxes), inside,
                           (batch, height, width))
        heatmap = cells.draw(
            box_radius(extent, 0.3), labels, self.num_classes).to(boxes.dtype)
        wh, offset, weight = cells.scatter(torch.cat(
            (extent, center - cells.cell, torch.ones_like(center)),
            1)).split(2, 1)
        return dict(
            center_heatmap_target=heatmap, wh_target=wh, offset_target=offset,
            wh_offset_target_weight=weight), count_peaks(heatmap)


class CornerTargets:
    """Targets of mmdet's ``CornerHead`` without its loop over boxes."""

    num_classes: int

    def get_targets(self,
                    gt_bboxes: list[Tensor],
                    gt_labels: list[Tensor],
                    feat_shape: tuple,
                    img_shape: tuple,
                    with_corner_emb: bool = False,
                    with_guiding_shift: bool = False,
                    with_centripetal_shift: bool = False) -> dict[str, Any]:
        """Return mmdet's targets, from the same arguments.

        A box with a corner left of or above the image is left out; mmdet's
        loop counts such a cell from the other end of the map.
        """
        boxes, labels = torch.cat(gt_bboxes), torch.cat(gt_labels)
        batch, _, height, width = feat_shape
        x1, y1, x2, y2 = boxes.unbind(1)
        scale = partial(_to_cells, feat_shape, img_shape)
        corners = scale(x1, y1), scale(x2, y2)
        center = scale((x1 + x2) / 2, (y1 + y2) / 2)
        last = boxes.new_zeros(2)
        last[0], last[1] = width - 1, height - 1
        corner_cells = [torch.minimum(x, last).long() for x in corners]
        keep = torch.stack([(x > -1).all(1) for x in corners]).all(0)
        # In float64, as Python's numbers are.
        radius = box_radius((corners[1] - corners[0]).ceil().double(), 0.3)
        targets: dict[str, Any] = {}
        for name, corner, cell, sign in zip(
                ('topleft', 'bottomright'), corners, corner_cells, (1, -1),
                strict=True):
            cells = ImageCells(
                cell, sample_of(gt_bboxes), keep, (batch, height, width))
            targets[f'{name}_heatmap'] = cells.draw(
                radius, labels, self.num_classes).to(boxes.dtype)
            values = dict(offset=corner - cell)
            if with_guiding_shift:
                values['guiding_shift'] = sign * (center - cell)
            if with_centripetal_shift:
                distance = sign * (center - corner).double()
                values['centripetal_shift'] = distance.log().to(boxes.dtype)
            maps = cells.scatter(torch.cat([*values.values()], 1)).split(2, 1)
            targets.update(zip(
                (f'{name}_{key}' for key in values), maps, strict=True))
        if with_corner_emb:
            # Lists of cells (y, x), as the loss of the embeddings takes them.
            pairs = torch.stack(corner_cells, 1).flip(2).tolist()
            match = iter(zip(pairs, keep.tolist(), strict=True))
            targets['corner_embedding'] = [
                [pair for pair, kept in (next(match) for _ in sample) if kept]
                for sample in gt_labels]
        return targets
