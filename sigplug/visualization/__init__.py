"""Pictures with matplotlib alone: no display, no data set, no OpenMMLab."""
from .ablation import draw_ablation
from .bev import draw_bev
from .bev_boxes import bev_corners
from .figure import save_png, to_image
from .heatmap_pair import draw_heatmap_pair
from .training import TrainingLog, draw_training, read_training_log

__all__ = [
    'TrainingLog', 'bev_corners', 'draw_ablation', 'draw_bev',
    'draw_heatmap_pair', 'draw_training', 'read_training_log', 'save_png',
    'to_image'
]
