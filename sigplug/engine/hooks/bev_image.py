"""Bird's-eye views of validation samples."""
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from sigplug.engine.bev_frame import (
    HeatmapReader,
    draw_sample,
    predictions,
    space_evenly,
)
from sigplug.registry import HOOKS

from .interval import unwrap


@HOOKS.register_module()
class BEVImageHook(Hook):
    """Show predictions beside the ground truth, from above, in validations.

    The pictures, ``bev_val_{index of the sample}``, go to the visualiser of
    the runner and so to each of its backends, with the iteration of the
    training as their step. They are those of
    ``tools/analysis_tools/visualize_bev.py``: the points, the annotated and
    the predicted boxes, and below them the heatmap, where the head is a
    ``CenterHead``. The samples are evenly spaced over those of rank 0, which
    alone draws, and the same in each validation.

    A validation without LiDAR points or without 3D boxes is left alone, with
    a line in the log.

    Args:
        num_samples (int): Number of pictures. Defaults to 4.
        score_thr (float): Draw predictions with at least this score. Defaults
            to 0.3.
    """

    def __init__(self, num_samples: int = 4, score_thr: float = 0.3) -> None:
        self.num_samples = num_samples
        self.score_thr = score_thr
        self._warned = False
        # Batch and place in the batch of each sample that is drawn.
        self._chosen: list[tuple[int, int]] = []
        self._reader: HeatmapReader | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the samples."""
        loader = runner.val_dataloader
        # None where a sampler makes whole batches.
        size = loader.batch_size or 1
        length = min(len(loader.sampler), size * len(loader))
        self._chosen = [
            divmod(place, size)
            for place in space_evenly(self.num_samples, length)
        ] if is_main_process() else []

    def before_val_iter(self, runner: Runner, batch_idx: int,
                        data_batch: Any = None) -> None:
        """Read the heatmaps of a batch that is drawn."""
        if any(batch == batch_idx for batch, _ in self._chosen):
            self._reader = HeatmapReader.attach(unwrap(runner.model))

    def after_val_iter(self, runner: Runner, batch_idx: int,
                       data_batch: Any = None,
                       outputs: Sequence | None = None) -> None:
        """Draw the chosen samples of a batch."""
        for batch, place in self._chosen:
            if batch == batch_idx:
                self._draw(runner, place, data_batch, outputs)
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _draw(self, runner: Runner, place: int, data_batch: Any,
              outputs: Any) -> None:
        dataset = runner.val_dataloader.dataset
        inputs = data_batch.get('inputs') if isinstance(
            data_batch, dict) else None
        sample = outputs[place]
        index = getattr(sample, 'metainfo', {}).get('sample_idx')
        if not (isinstance(dataset, BaseDataset) and isinstance(inputs, dict)
                and 'points' in inputs and index is not None
                and hasattr(sample, 'pred_instances_3d')):
            if not self._warned:
                print_log(
                    'BEVImageHook: no pictures, since the validation has no '
                    'LiDAR points or no boxes in space, or its data set is '
                    f'wrapped in another ({type(dataset).__name__}).',
                    logger='current', level=logging.WARNING)
            self._warned = True
            return
        # A validation outside of a training has no training loop.
        loop = runner._train_loop
        step = loop.iter if isinstance(loop, BaseLoop) else 0
        found = predictions(sample, self.score_thr)
        if self._reader is not None:
            found |= self._reader.read(place)
        try:
            figure = draw_sample(
                dataset, index, inputs['points'][place], found,
                f'val sample {index}, iteration {step}: predictions with '
                f'score \u2265 {self.score_thr:g}')
        except Exception as error:  # No picture is worth a training.
            print_log(
                f'BEVImageHook: no picture of the sample {index}: {error}',
                logger='current', level=logging.WARNING)
            return
        from sigplug.visualization import to_image
        runner.visualizer.add_image(f'bev_val_{index}', to_image(figure), step)
