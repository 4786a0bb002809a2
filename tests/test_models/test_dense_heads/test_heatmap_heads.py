"""Where the heads differ from mmdet's, see test_against_stock.py too."""
import pytest
import torch

from .stock_twins import (
    METAS,
    both,
    build,
    compute_losses,
    features,
    focal,
    instances,
    of_logits,
)

UPDATE = 'CenterNetUpdateHead'


@pytest.mark.parametrize('loss, clip', [(focal, 1e-4), (of_logits, 0.0)])
@pytest.mark.parametrize('counts', [(0, 0), (0, 4), (4, 0)])
def test_images_without_boxes_are_background(loss, clip, counts):
    """Each of their cells weighs as much as one far from any box."""
    _, head = both(UPDATE, loss=loss)
    outs, batch = head(features(UPDATE)), instances(UPDATE, *counts)
    seen = []
    head.loss_cls.register_forward_hook(
        lambda *call: seen.append(call[2]), with_kwargs=True)
    loss = head.loss_by_feat(*outs, batch, METAS)['loss_cls']
    options, = seen

    avg_factor = float(options['avg_factor'])
    assert (avg_factor > 1) == any(counts)
    expected = 0
    for i, count in enumerate(counts):
        image = [[x[i:i + 1] for x in out] for out in outs]
        if count:
            # It brings all of the peaks, also when it is alone.
            part = head.loss_by_feat(*image, batch[i:i + 1], METAS[:1])
            expected += part['loss_cls'].double()
        else:
            q = torch.cat([x.double().flatten() for x in image[0]]).sigmoid()
            q = q.clamp(clip, 1 - clip)
            expected -= (q**2 * (1 - q).log()).sum() / avg_factor
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_soft_weights_of_the_boxes_equal_the_stock_heads():
    stock, ours = (build(UPDATE, prefix, soft_weight_on_reg=True)
                   for prefix in ('mmdet.', 'sigplug.'))
    ours.load_state_dict(stock.state_dict())
    x, batch = features(UPDATE), instances(UPDATE, 5, 3)
    torch.testing.assert_close(
        compute_losses(UPDATE, ours, ours(x), batch),
        compute_losses(UPDATE, stock, stock(x), batch), rtol=1e-6, atol=0)


def test_corners_without_embeddings():
    """Where the stock head looks for their targets, which do not exist."""
    head = build('CornerHead', corner_emb_channels=0)
    losses = compute_losses('CornerHead', head, head(features('CornerHead')),
                            instances('CornerHead', 5, 3))
    assert losses.keys() == {
        'det_loss.0', 'det_loss.1', 'off_loss.0', 'off_loss.1'}
    assert all(loss.isfinite() for loss in losses.values())
