"""Pictures with matplotlib alone: no display, no data set, no OpenMMLab."""
from .bev import draw_bev
from .bev_boxes import bev_corners
from .figure import save_png, to_image
from .heatmap_pair import draw_heatmap_pair

__all__ = [
    'bev_corners', 'draw_bev', 'draw_heatmap_pair', 'save_png', 'to_image'
]
