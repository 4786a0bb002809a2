"""Pictures of samples, from data sets and detectors of mmdet3d."""
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_sample(dataset: BaseDataset, index: int, points: Tensor,
                found: Mapping[str, Any], title: str,
                bev_range: Sequence[float] | None = None,
                size: tuple[int, int] | None = None) -> 'Figure':
    """Draw a sample of a data set of mmdet3d, and what was found in it.

    ``points`` are what the detector sees of it, shape ``(N, >=3)``, and
    ``found`` comes from :func:`predictions` and :meth:`HeatmapReader.read`, or
    is empty. The rest is as for ``draw_bev``.
    """
    # matplotlib is imported with the first picture.
    from sigplug.visualization import draw_bev
    info = dataset.get_data_info(index)
    return draw_bev(
        points.cpu().numpy(), **ground_truth(dataset, info), **found,
        class_names=dataset.metainfo['classes'], bev_range=bev_range,
        ego_yaw=ego_yaw(info), title=title, size=size)


def space_evenly(num: int, length: int) -> list[int]:
    """Return up to ``num`` indices below ``length``, evenly spaced."""
    num = min(num, length)
    return [int((i + 0.5) * length / num) for i in range(num)]


def ground_truth(dataset: BaseDataset, info: dict) -> dict[str, Any]:
    """Return the annotated boxes as arguments of ``draw_bev``, if any.

    ``info`` is what ``get_data_info`` of the data set returns.
    """
    from mmdet3d.datasets import NuScenesDataset
    from mmdet3d.structures import Box3DMode
    if not isinstance(dataset, NuScenesDataset):
        annotations = info.get('eval_ann_info')
        if annotations is None:
            return {}
        bboxes = annotations['gt_bboxes_3d'].convert_to(Box3DMode.LIDAR)
        return dict(
            gt_bboxes=bboxes.tensor.numpy(),
            gt_labels=annotations['gt_labels_3d'],
            gt_num_points=annotations.get('num_lidar_pts'))
    # NuScenesDataset drops the objects that no point lies on.
    known = [instance for instance in info['instances']
             if dataset.label_mapping[instance['bbox_label_3d']] >= 0]
    return dict(
        gt_bboxes=np.array(
            [[*instance['bbox_3d'], *instance['velocity']]
             for instance in known], dtype=np.float64).reshape(-1, 9),
        gt_labels=np.array(
            [dataset.label_mapping[instance['bbox_label_3d']]
             for instance in known], dtype=np.int64),
        gt_num_points=np.array(
            [instance['num_lidar_pts'] for instance in known], dtype=int))


def ego_yaw(info: dict) -> float | None:
    """Return the heading of the vehicle in the coordinates of the LiDAR."""
    lidar2ego = info.get('lidar_points', {}).get('lidar2ego')
    if lidar2ego is None:
        return None
    # The first row of the rotation is the x axis of the vehicle.
    return float(np.arctan2(lidar2ego[0][1], lidar2ego[0][0]))


def predictions(sample: BaseDataElement,
                score_thr: float) -> dict[str, Any]:
    """Return the boxes of at least this score as arguments of ``draw_bev``.

    Boxes that are not finite, which a model may predict early, are left out.
    """
    found = sample.pred_instances_3d.cpu()
    bboxes = found.bboxes_3d.tensor
    found = found[(found.scores_3d >= score_thr)
                  & bboxes.isfinite().all(1)]
    return dict(
        pred_bboxes=found.bboxes_3d.tensor.numpy(),
        pred_labels=found.labels_3d.numpy(),
        pred_scores=found.scores_3d.numpy())


class HeatmapReader:
    """Reader of the heatmaps that mmdet3d's ``CenterHead`` gives."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self._outputs: Any = None
        self._handle = head.register_forward_hook(self._keep)

    @classmethod
    def attach(cls, model: nn.Module) -> 'HeatmapReader | None':
        """Attach a reader to the ``CenterHead`` of a detector, if any."""
        from mmdet3d.models import CenterHead
        head = getattr(model, 'pts_bbox_head', None)
        return cls(head) if isinstance(head, CenterHead) else None

    def _keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._outputs = outputs

    def close(self) -> None:
        """Detach from the head."""
        self._handle.remove()
        self._outputs = None

    def read(self, index: int = 0) -> dict[str, Any]:
        """Return the highest score of all classes as for ``draw_bev``."""
        logits = torch.cat(
            [task[0]['heatmap'][index] for task in self._outputs])
        heatmap = logits.float().sigmoid().amax(dim=0).cpu().numpy()
        coder = self.head.bbox_coder
        low = np.array(coder.pc_range[:2])
        cell = np.array(coder.voxel_size[:2]) * coder.out_size_factor
        high = low + cell * heatmap.shape[::-1]
        return dict(heatmap=heatmap, heatmap_extent=(*low, *high))
