"""What a bird's-eye view of a sample needs, as arguments of ``draw_bev``."""
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torch import nn


def spread(num: int, length: int) -> list[int]:
    """Up to ``num`` indices below ``length``, evenly spaced."""
    num = min(num, length)
    return [int((i + 0.5) * length / num) for i in range(num)]


def ground_truth(dataset: BaseDataset, info: dict) -> dict[str, Any]:
    """The annotated boxes of a sample as arguments of ``draw_bev``.

    Args:
        dataset (BaseDataset): A data set of mmdet3d for validation.
        info (dict): Its ``get_data_info`` of the sample.

    Returns:
        dict[str, Any]: The arguments; none without annotations.
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
    instances = [
        instance for instance in info['instances']
        if dataset.label_mapping[instance['bbox_label_3d']] >= 0
    ]
    bboxes = [[*instance['bbox_3d'], *instance['velocity']]
              for instance in instances]
    labels = [
        dataset.label_mapping[instance['bbox_label_3d']]
        for instance in instances
    ]
    return dict(
        gt_bboxes=np.array(bboxes, dtype=np.float64).reshape(-1, 9),
        gt_labels=np.array(labels, dtype=np.int64),
        gt_num_points=np.array(
            [instance['num_lidar_pts'] for instance in instances], dtype=int))


def ego_yaw(info: dict) -> float | None:
    """The heading of the vehicle in the coordinates of the LiDAR."""
    lidar2ego = info.get('lidar_points', {}).get('lidar2ego')
    if lidar2ego is None:
        return None
    # The first row of the rotation is the x axis of the vehicle.
    return float(np.arctan2(lidar2ego[0][1], lidar2ego[0][0]))


def predictions(sample: BaseDataElement,
                score_thr: float) -> dict[str, Any]:
    """The predicted boxes of a sample as arguments of ``draw_bev``.

    Args:
        sample (BaseDataElement): What the detector returned for it.
        score_thr (float): The least score of a box.

    Returns:
        dict[str, Any]: The arguments. Boxes that are not finite, which
        a model may predict early, are left out.
    """
    found = sample.pred_instances_3d.cpu()
    bboxes = found.bboxes_3d.tensor
    found = found[(found.scores_3d >= score_thr)
                  & bboxes.isfinite().all(1)]
    return dict(
        pred_bboxes=found.bboxes_3d.tensor.numpy(),
        pred_labels=found.labels_3d.numpy(),
        pred_scores=found.scores_3d.numpy())


class HeatmapKeeper:
    """Keeps what a head like ``CenterHead`` says about its heatmaps.

    Args:
        model (nn.Module): The detector.

    Raises:
        ValueError: It has no such head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.head: Any = getattr(model, 'pts_bbox_head', None)
        coder = getattr(self.head, 'bbox_coder', None)
        if self.head is None or not all(
                hasattr(coder, name) for name in
                ('pc_range', 'voxel_size', 'out_size_factor')):
            raise ValueError(f'{type(model).__name__} has no heatmap like '
                             'that of CenterHead')
        self.outputs: Any = None
        self._handle = self.head.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self.outputs = outputs

    def remove(self) -> None:
        """Leave the head alone again."""
        self._handle.remove()
        self.outputs = None

    def heatmap(self, index: int = 0) -> dict[str, Any]:
        """The highest score of all classes and the place of the map.

        Args:
            index (int): The sample of the last batch. Defaults to 0.

        Returns:
            dict[str, Any]: Arguments of ``draw_bev``.

        Raises:
            ValueError: The head gives no heatmaps as ``CenterHead`` does.
        """
        try:
            logits = torch.cat(
                [task[0]['heatmap'][index] for task in self.outputs])
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f'{type(self.head).__name__} gives no heatmaps like those of '
                'CenterHead') from error
        heatmap = logits.float().sigmoid().amax(dim=0).cpu().numpy()
        coder = self.head.bbox_coder
        low = np.array(coder.pc_range[:2])
        cell = np.array(coder.voxel_size[:2]) * coder.out_size_factor
        high = low + cell * heatmap.shape[::-1]
        return dict(heatmap=heatmap, heatmap_extent=(*low, *high))
