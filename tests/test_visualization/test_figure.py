import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from sigplug.visualization import save_png, to_image
from sigplug.visualization.figure import new_figure


@pytest.mark.parametrize('size', [(1500, 1200), (640, 480)])
def test_png_has_the_promised_size(tmp_path, size):
    path = tmp_path / 'new' / 'figure.png'
    figure = new_figure(size)
    figure.add_subplot().set_aspect(3)
    # Settings that users have for pictures of their own.
    with matplotlib.rc_context({'savefig.bbox': 'tight', 'savefig.dpi': 70}):
        save_png(figure, path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == size
    assert [p.name for p in path.parent.iterdir()] == ['figure.png']


def test_image_is_what_the_file_holds(tmp_path):
    figure = new_figure((640, 480))
    figure.add_subplot().fill([0, 1, 0], [0, 0, 1], color='#aa4499')
    image = to_image(figure)
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    assert (image == (0xaa, 0x44, 0x99)).all(-1).mean() > 0.1
    save_png(figure, tmp_path / 'figure.png')
    saved = matplotlib.image.imread(tmp_path / 'figure.png')[..., :3]
    np.testing.assert_array_equal(image, (255 * saved).round())


def test_figures_do_not_pile_up_in_pyplot():
    new_figure((300, 300))
    assert plt.get_fignums() == []


def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / 'figure.png'
    path.write_bytes(b'old')
    figure = new_figure((300, 300))

    def fail(partial, **kwargs):
        with open(partial, 'wb') as file:
            file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(figure, 'savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        save_png(figure, path)
    assert path.read_bytes() == b'old'


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r'size .* \(100, 900\)'):
        new_figure((100, 900))
    with pytest.raises(ValueError, match=r"\.png.*'figure\.jpg'"):
        save_png(new_figure((300, 300)), 'figure.jpg')
