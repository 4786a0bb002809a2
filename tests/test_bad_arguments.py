"""A bad argument is named, with its value and what is accepted.

One value that a config or a script may well hold for each public part; the
ranges of the arguments are tested with the parts.
"""
import re

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

T, V = TypeError, ValueError
X = torch.rand(2, 3, 4, 4)
ROWS, INDEX = torch.rand(4, 2), torch.tensor([0, 1, 1, 1])
focal_loss = gaussian_focal_loss_with_logits


def heatmap(centers=((1, 1), ), num_classes=3, size=(4, 4)):
    one = torch.tensor([1])
    return gaussian_heatmap(torch.tensor(centers), one, one, num_classes, size)


# The error holds these words in this order, whatever is between them.
CASES = [
    (lambda: clip_sigmoid(None), T, 'x', 'NoneType'),
    (lambda: clip_sigmoid(X.int()), T, 'x', 'torch.int32', 'x.float()'),
    (lambda: clip_sigmoid(X, '1e-4'), T, 'min_val', 'number', "'1e-4'"),
    (lambda: clip_sigmoid(X, grad='on'), V, 'grad', "'zero'", "'on'"),
    (lambda: clip_sigmoid(X, backend='c'), V, 'backend', "'cpp'", "'c'"),
    (lambda: generalized_mean([1.0]), T, 'x', 'list'),
    (lambda: generalized_mean(X, '3'), V, 'p', 'above 0', "'3'"),
    (lambda: generalized_mean(X, dim=4), V, 'dim', '4'),
    (lambda: generalized_mean(X, mask=X), T, 'mask', 'boolean', 'float32'),
    (lambda: gem_pool(X, kernel_size='3'), V, 'kernel_size', "'3'"),
    (lambda: segment_generalized_mean(ROWS, INDEX.float(), 2), T, 'index',
     'float32'),
    (lambda: segment_generalized_mean(ROWS, INDEX, 1), V, 'index', '1'),
    (lambda: focal_loss(X, X[0]), V, 'target', '(2, 3, 4, 4)', '(3, 4, 4)'),
    (lambda: focal_loss(X, X, alpha='2'), T, 'alpha', 'number', "'2'"),
    (lambda: focal_loss(X, X, reduction='avg'), V, 'reduction', "'avg'"),
    (lambda: heatmap(((1., 1.), )), T, 'centers', 'integer', 'float32'),
    (lambda: heatmap(num_classes=-1), V, 'num_classes', '-1'),
    (lambda: ClipSigmoid('1e-4'), T, 'eps', 'number', "'1e-4'"),
    (lambda: ClipSigmoid(inplace='no'), T, 'inplace', 'False', "'no'"),
    (lambda: GaussianFocalLossWithLogits(clip='1e-4'), T, 'clip', "'1e-4'"),
    (lambda: GeM('inf'), T, 'p', 'number', "'inf'"),
    (lambda: GeM(eps=None), T, 'eps', 'number', 'None'),
    (lambda: GeM(channels=2.5), V, 'channels', 'integer', '2.5'),
    (lambda: GeMContext('4'), V, 'in_channels', 'integer', "'4'"),
    (lambda: GeMContext(4)(X), V, 'in_channels=4', '3'),
    (lambda: GeMNeck(bins=2), T, 'bins', 'tuple or list', '2'),
    (lambda: GeMPyramid('2'), V, 'num_outs', 'integer', "'2'"),
    (lambda: GeMPyramid(2, inner='FPN'), T, 'inner', "dict(type='FPN')"),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: ' '.join(case[2:]))
def test_message(case):
    call, error, *words = case
    with pytest.raises(error) as info:
        call()
    assert re.search('.*'.join(map(re.escape, words)), str(info.value),
                     re.DOTALL), str(info.value)
    # Not torch's or Python's own, which know no argument.
    assert '/sigplug/' in str(info.traceback[-1].path)
