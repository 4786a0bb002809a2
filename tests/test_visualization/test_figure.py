import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np

from sigplug.visualization import save_png, to_image
from sigplug.visualization.figure import new_figure


def test_png_has_the_promised_size_and_the_pixels_of_the_image(tmp_path):
    path = tmp_path / 'new' / 'figure.png'
    figure = new_figure((640, 480))
    figure.add_subplot().fill([0, 1, 0], [0, 0, 1], color='#aa4499')
    # Settings that users have for pictures of their own.
    with matplotlib.rc_context({'savefig.bbox': 'tight', 'savefig.dpi': 70}):
        save_png(figure, path)
    saved = matplotlib.image.imread(path)[..., :3]
    image = to_image(figure)
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    assert (image == (0xaa, 0x44, 0x99)).all(-1).mean() > 0.1
    np.testing.assert_array_equal(image, (255 * saved).round())
    assert [p.name for p in path.parent.iterdir()] == ['figure.png']
    assert plt.get_fignums() == []
