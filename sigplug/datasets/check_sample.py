"""A transform that names bad samples, or leaves them out."""
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get
from mmengine.logging import print_log

from sigplug.errors import UserError
from sigplug.registry import TRANSFORMS

# Count at least so many samples as seen: one bad sample among the first few
# does not show the share.
MIN_SEEN = 20
FLOAT_BYTES = 4


class BadSampleError(UserError):
    """A sample that cannot be used; its text names the file and a remedy."""

    def __init__(self, text: str) -> None:
        # From a data loader's worker the text arrives behind a traceback.
        super().__init__(text.rpartition(f'{type(self).__name__}: ')[2])


@TRANSFORMS.register_module()
class CheckSample:
    """Name a sample that cannot be used, or leave it out.

    It is the first transform of a pipeline, before the points are loaded.
    A sample is bad if a file of points is missing, empty or not of
    ``load_dim`` float32 values a point, has no point with finite coordinates,
    or another value of such a point is not finite; in training also if a box
    of a trained class has a value that is not finite, or a size that is not
    positive. Points without finite coordinates, the returns that some sensors
    miss, are fine: ``PointsRangeFilter`` drops them.

    Bad samples are left out with ``on_bad='skip'``, each time with a
    warning: training takes another sample in its place, at random. In
    evaluation, where every sample needs a result, it becomes one without
    points, for which :class:`sigplug.CenterHead` behind
    :class:`sigplug.Det3DDataPreprocessor` predicts nothing.

    The files are read twice, the second time from the system's cache.

    Args:
        load_dim (int): Values of each point in the files.
        sweeps_num (int): As for ``LoadPointsFromMultiSweeps``, whose files
            are checked too: the nearest, and in training, where it draws
            among them, all. Defaults to 0.
        on_bad (str): ``'raise'`` or ``'skip'``. Defaults to ``'raise'``.
        max_bad (float): The share of bad samples, among all that were asked
            for and at least 20, beyond which ``'skip'`` ends in an error too.
            Defaults to 0.1.
        backend_args (dict, optional): As for ``LoadPointsFromFile``.

    Raises:
        ValueError: ``on_bad`` is neither.
        BadSampleError: When called, for a bad sample.
    """

    def __init__(self,
                 load_dim: int,
                 sweeps_num: int = 0,
                 on_bad: str = 'raise',
                 max_bad: float = 0.1,
                 backend_args: dict | None = None) -> None:
        if on_bad not in ('raise', 'skip'):
            raise ValueError(f"on_bad must be 'raise' or 'skip', but got "
                             f'{on_bad!r}')
        self.load_dim = load_dim
        self.sweeps_num = sweeps_num
        self.on_bad = on_bad
        self.max_bad = max_bad
        self.backend_args = backend_args
        # Shared by the workers of all epochs: how many samples were seen and
        # how many were bad.
        self._counts = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Check a sample.

        Args:
            results (dict): The sample from the dataset; left as it is,
                unless it becomes a sample without points.

        Returns:
            dict or None: ``results``; None if training leaves it out.
        """
        self._counts[0] += 1
        problem = next(self._find_problems(results), None)
        if problem is None:
            return results
        self._counts[1] += 1
        name, text = problem
        text = f'{name!r} (sample {results.get("sample_idx")}): {text}.'
        if self.on_bad == 'raise':
            raise BadSampleError(
                f'Bad data in {text} Restore the file or create its info '
                "file again, or leave bad samples out with on_bad='skip' of "
                'sigplug.CheckSample in the pipeline (docs/datasets.md).')
        self._check_share(text)
        training = 'ann_info' in results
        what = 'left out' if training else 'evaluated without points'
        print_log(f'Bad data, {what}: {text}', 'current', logging.WARNING)
        if training:
            return None
        # mmdet3d's loaders read no points from it, whatever their options.
        results['lidar_points'] = dict(
            results['lidar_points'], lidar_path=os.devnull)
        results.pop('lidar_sweeps', None)
        return results

    def _check_share(self, text: str) -> None:
        seen, bad = self._counts.tolist()
        if bad > self.max_bad * max(seen, MIN_SEEN):
            raise BadSampleError(
                f'{bad} of {seen} samples are bad, more than '
                f'max_bad={self.max_bad:g} of sigplug.CheckSample allows; the '
                f'last one is {text} Restore the data, or raise max_bad.')

    def _find_problems(self, results: dict) -> Iterator[tuple[str, str]]:
        """Yield each bad file with what is wrong with it or its boxes."""
        # The points that mmdet3d's inferencer passes on have no file.
        if 'lidar_path' not in results.get('lidar_points', {}):
            return
        key_frame = results['lidar_points']['lidar_path']
        sweeps = results.get('lidar_sweeps', [])
        if 'ann_info' not in results or not self.sweeps_num:
            sweeps = sweeps[:self.sweeps_num]
        for path in (key_frame, *(
                sweep['lidar_points']['lidar_path'] for sweep in sweeps)):
            problem = self._find_problem_of_points(path)
            if problem:
                yield path, problem
        if 'ann_info' in results:
            problem = _find_problem_of_boxes(results['ann_info'])
            if problem:
                yield key_frame, problem

    def _find_problem_of_points(self, path: str) -> str | None:
        try:
            data = get(path, backend_args=self.backend_args)
        except OSError as error:
            return f'the points cannot be read ({error.strerror or error})'
        if not data:
            return 'the file of points is empty'
        if len(data) % (FLOAT_BYTES * self.load_dim):
            return (f'its {len(data)} bytes are no whole number of points of '
                    f'{self.load_dim} float32 values, load_dim of '
                    'sigplug.CheckSample: cut off, or of another format')
        points = np.frombuffer(data, dtype=np.float32).reshape(
            -1, self.load_dim)
        # The sum is finite almost always, and quick.
        with np.errstate(all='ignore'):
            if np.isfinite(points.sum(dtype=np.float64)):
                return None
        finite = np.isfinite(points)
        somewhere = finite[:, :3].all(1)
        if not somewhere.any():
            return f'none of its {len(points)} points has finite coordinates'
        wrong = int((~finite[somewhere].all(1)).sum())
        if wrong:
            return (f'{wrong} of its {len(points)} points have a value beside '
                    'their coordinates that is NaN or infinite')
        return None


def _find_problem_of_boxes(annotations: dict) -> str | None:
    trained = np.asarray(annotations['gt_labels_3d']) >= 0
    boxes = annotations['gt_bboxes_3d'].tensor.numpy()[trained]
    bad = ~np.isfinite(boxes).all(1) | (boxes[:, 3:6] <= 0).any(1)
    if not bad.any():
        return None
    return (f'{int(bad.sum())} of its {len(boxes)} annotated boxes have a '
            'value that is NaN or infinite, or a size that is not positive; '
            f'the first one is {boxes[bad][0].tolist()}')
