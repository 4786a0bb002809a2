"""A bad argument is named, with its value and what is accepted."""
import math

import pytest
import torch

from sigplug.models import (
    ClipSigmoid,
    GaussianFocalLossWithLogits,
    GeM,
    GeMContext,
    GeMNeck,
    GeMPyramid,
)
from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gem_pool,
    generalized_mean,
    segment_generalized_mean,
)

X = torch.rand(2, 3, 4, 4)
ROWS = torch.rand(4, 2)
INDEX = torch.tensor([0, 1, 1, 1])


def heatmap(radius=1, label=0):
    return gaussian_heatmap(
        torch.tensor([[1, 1]]), torch.tensor([radius]), torch.tensor([label]),
        3, (4, 4))


@pytest.mark.parametrize('call, error, words', [
    (lambda: clip_sigmoid(X, 'a'), TypeError, "min_val must be.* got 'a'"),
    (lambda: clip_sigmoid(X, 0.1, None), TypeError, 'max_val must be.* None'),
    (lambda: ClipSigmoid(eps='1e-4'), TypeError, "eps must be.* got '1e-4'"),
    (lambda: generalized_mean(X, eps='a'), TypeError, "eps must be.* 'a'"),
    (lambda: generalized_mean(X, dim=None), ValueError, 'dim must be.* None'),
    (lambda: generalized_mean(X, dim=1.5), ValueError, 'dim must be.* 1.5'),
    (lambda: generalized_mean(X, mask=[True]), TypeError,
     'mask must be a tensor, but got list: convert'),
    (lambda: segment_generalized_mean(ROWS, [0] * 4, 2), TypeError,
     'index must be a tensor, but got list: convert'),
    (lambda: segment_generalized_mean(ROWS, INDEX, 2.0), ValueError,
     'num_segments must be an integer.* got 2.0'),
    (lambda: gem_pool(X, kernel_size=2.5), ValueError,
     'kernel_size must consist of integers.* got 2.5'),
    (lambda: gaussian_focal_loss_with_logits(X, [1]), TypeError,
     'target must be a tensor, but got list: convert'),
    (lambda: gaussian_focal_loss_with_logits(X, X, alpha='2'), TypeError,
     "alpha must be a number, but got '2'"),
    (lambda: GaussianFocalLossWithLogits(pos_weight=-1), ValueError,
     'pos_weight must be at least 0 and finite, but got -1'),
    (lambda: GaussianFocalLossWithLogits(clip='a'), TypeError,
     "clip must be a number, but got 'a'"),
    (lambda: GeM(p='inf'), TypeError, "p must be a number, but got 'inf'"),
    (lambda: GeM(p=math.inf), ValueError, 'p=inf: give .* p_trainable=False'),
    (lambda: GeM(p_range=(5, )), ValueError, r'p_range must be two.*\(5,\)'),
    (lambda: GeM(p_range=5), ValueError, 'p_range must be two.* got 5'),
    (lambda: GeM(p_range=('a', 2)), ValueError, r"p_range must .*\('a', 2\)"),
    (lambda: GeM(eps='a'), TypeError, "eps must be a number, but got 'a'"),
    (lambda: GeM(eps=math.inf), ValueError, 'eps must .* finite.* got inf'),
    (lambda: GeM(channels=2.5), ValueError, 'channels must be.* got 2.5'),
    (lambda: GeMNeck(channels='4'), ValueError, "channels must be.* got '4'"),
    (lambda: GeMContext(4, ratio=math.inf), ValueError, 'ratio .* got inf'),
    (lambda: GeMPyramid(2, eps=None), TypeError, 'eps must be.* got None'),
    (lambda: heatmap(radius=-2), ValueError, 'radii must lie in.* from -2'),
    (lambda: heatmap(label=5), ValueError, r'labels must lie in \[0, 2\].* 5'),
])
def test_message(call, error, words):
    with pytest.raises(error, match=words):
        call()
