"""A CenterPoint of pillars in onnxruntime."""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sigplug.errors import UserError

from . import boxes as box_steps
from . import pillars
from .folder import DENSE, DESCRIPTION, ENCODER, read_description


class Detections(NamedTuple):
    """The boxes of a frame.

    Attributes:
        boxes (np.ndarray): ``(x, y, z, dx, dy, dz, yaw[, vx, vy])`` in the
            coordinates of the points, shape ``(N, 7 or 9)``, float32: z is
            that of the bottom, as in mmdet3d; metres, radians and m/s.
        scores (np.ndarray): In [0, 1], shape ``(N, )``, float32, which
            rounds a logit above 17 to 1.
        labels (np.ndarray): Indices into the classes, shape ``(N, )``.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Detector:
    """Points in, boxes out, as the PyTorch model that was exported.

    Args:
        folder (str | os.PathLike): What ``tools/deployment/export_onnx.py``
            has written.
        providers (Sequence[str]): onnxruntime's execution providers. Defaults
            to the CPU.
        threads (int): Threads of onnxruntime; 0 lets onnxruntime choose.
            Defaults to 0.

    Attributes:
        about (dict): The content of ``deploy.json``.
        classes (list[str]): The names of the classes.

    Raises:
        UserError: The folder is missing, damaged, or not to be run here.
    """

    def __init__(self, folder: str | os.PathLike,
                 providers: Sequence[str] = ('CPUExecutionProvider', ),
                 threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f'{error}. Detector needs one more package: pip '
                            'install onnxruntime') from error
        self.about = read_description(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.classes: list[str] = sum(self.about['tasks'], [])
            self._encoder, self._dense = (
                onnxruntime.InferenceSession(
                    str(Path(folder) / name), options,
                    providers=list(providers)) for name in (ENCODER, DENSE))
            # What does not fit is said here, and not at the first frame:
            # points in the first and the last cell meet all of it.
            voxels = self.about['voxels']
            low, high = np.reshape(voxels['point_cloud_range'], (2, 3))
            half = np.divide(voxels['voxel_size'], 2)
            points = np.zeros((2, len(self.about['points']['columns'])))
            points[:, :3] = low + half, high - half
            self(points)
        except Exception as error:
            reason = ' '.join(str(error).split())
            raise UserError(
                f'onnxruntime {onnxruntime.__version__} cannot run {folder} '
                f'as its {DESCRIPTION} says, {type(error).__name__}: {reason}'
            ) from error

    def __call__(self, points: np.ndarray) -> Detections:
        """Detect the objects of a frame.

        Args:
            points (np.ndarray): What the model takes of each point, shape
                ``(N, num_features)``; see :meth:`adapt` for a cloud as it is
                in a file.

        Returns:
            Detections: The boxes; none where no point is in range.

        Raises:
            UserError: The points are not as described, none, or not finite.
        """
        canvas = self.encode(points)
        return self.decode({} if canvas is None else self.infer(canvas))

    def adapt(self, cloud: np.ndarray) -> np.ndarray:
        """Take the columns of a cloud that the model was trained with.

        Args:
            cloud (np.ndarray): The values of each point in a file of the
                training's data set, shape ``(N, C)``. A column that only
                holds the age of merged sweeps becomes 0 and may be missing.

        Returns:
            np.ndarray: Shape ``(N, num_features)``.

        Raises:
            UserError: The cloud has too few columns.
        """
        columns = self.about['points']['columns']
        needed = 1 + max(c for c in columns if c is not None)
        if cloud.ndim != 2 or cloud.shape[1] < needed:
            raise UserError(
                f'The cloud has the shape {cloud.shape}, but the model needs '
                f'at least {needed} values of each point: columns {columns} '
                'of the files of its training (None: 0).')
        return np.stack([np.zeros(len(cloud), cloud.dtype) if c is None else
                         cloud[:, c] for c in columns], axis=1)

    def encode(self, points: np.ndarray) -> np.ndarray | None:
        """Return the map of pillar features, ``(1, C, H, W)``, float32.

        It is None if no point is in range. The points are those of a call.
        """
        points = np.asarray(points)
        wanted = len(self.about['points']['columns'])
        if points.ndim != 2 or points.shape[1] != wanted:
            raise UserError(
                f'points must have the shape (N, {wanted}), as the model '
                f'takes {wanted} values of each point, but has the shape '
                f'{points.shape}; adapt() takes the columns of a file.')
        if not len(points):
            raise UserError('points must hold at least one point, but the '
                            'cloud is empty.')
        points = points.astype(np.float32)
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise UserError(
                f'points must be finite, but {bad.sum()} of {len(points)} '
                f'are not, first row {np.argmax(bad)}: pass '
                'points[np.isfinite(points).all(axis=1)].')
        voxels, cells, counts = pillars.voxelize(points, self.about['voxels'])
        if not len(cells):
            return None
        features = pillars.decorate(
            voxels, cells, counts, self.about['encoder'])
        encoded, = self._encoder.run(None, {'input_features': features})
        return pillars.scatter(encoded[:, 0], cells, self.about['map_size'])

    def infer(self, canvas: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of the network by their names."""
        names = [output.name for output in self._dense.get_outputs()]
        return dict(zip(names, self._dense.run(
            names, {'spatial_features': canvas})))

    def decode(self, outputs: dict[str, np.ndarray]) -> Detections:
        """Return the boxes that the outputs of the network stand for."""
        coder = self.about['coder']
        none = np.zeros((0, self.about['box_size']), np.float32)
        results = [(none, none[:, 0], np.zeros(0, np.int64))]
        first = 0
        for task, classes in enumerate(self.about['tasks']):
            maps = {name.removeprefix(f'task{task}.'): value[0]
                    for name, value in outputs.items()
                    if '.' not in name or name.startswith(f'task{task}.')}
            if maps:
                boxes, scores, labels = (
                    (maps['boxes'], maps['scores'], maps['labels'])
                    if 'boxes' in maps else box_steps.decode(
                        maps, coder, self.about['heatmap']))
                kept = box_steps.select(
                    boxes, scores, coder, self.about['nms'], task)
                results.append(
                    (boxes[kept], scores[kept], labels[kept] + first))
            first += len(classes)
        boxes, scores, labels = map(np.concatenate, zip(*results))
        boxes[:, 2] -= boxes[:, 5] / 2
        return Detections(boxes, scores, labels)
