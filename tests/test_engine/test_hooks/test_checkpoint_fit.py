"""Checkpoints of other models, loaded by a real Runner."""
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from toy_training import ToyModel, make_runner

from sigplug.engine.hooks import CheckpointFitHook
from sigplug.errors import UserError
from sigplug.models import GeM


class Net(BaseModel):
    """A trunk and a head, whose size depends on the number of classes."""

    def __init__(self, classes=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, classes)

    forward = ToyModel.forward


def load(tmp_path, checkpoint, partial=False, model=None):
    """What Runner.test and Runner.train do with ``load_from``."""
    path = tmp_path / 'other.pth'
    torch.save(checkpoint, path)
    runner = make_runner(tmp_path / 'work', load_from=str(path))
    runner.model = model or Net()
    runner.register_hook(CheckpointFitHook(partial=partial))
    runner.load_or_resume()
    return runner.model


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as info:
        load(*args, **kwargs)
    assert len(str(info.value)) < 700
    return str(info.value)


@pytest.mark.parametrize('prefix, wrapped', [
    ('', True), ('module.', True), ('', False)])
def test_its_own_checkpoint(tmp_path, prefix, wrapped):
    """Also with what only another version knows."""
    net = Net()
    state = {prefix + name: value for name, value in net.state_dict().items()}
    # Older versions of torch did not have it.
    del state[f'{prefix}trunk.1.num_batches_tracked']
    state[f'{prefix}unknown'] = torch.ones(1)
    checkpoint = dict(state_dict=state, unknown=1) if wrapped else state
    found = load(tmp_path, checkpoint)
    for name, value in net.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize('change, words', [
    (lambda state: Net(classes=5).state_dict(),
     ['lacks 2 of the 8 weights', 'head.weight ((5, 4) in place of (3, 4))']),
    (lambda state: {name: value for name, value in state.items()
                    if name != 'trunk.1.running_var'},
     ['trunk.1.running_var (missing)']),
    (lambda state: dict(epoch=1, weights=[1]), ['lacks 8 of the 8 weights']),
])
def test_checkpoint_of_another_model(tmp_path, change, words):
    message = refusal(tmp_path, change(Net().state_dict()))
    for word in ('other.pth', *words):
        assert word in message


def test_nothing_in_common(tmp_path):
    assert 'lacks 8 of the 8' in refusal(tmp_path, dict(a=1), partial=True)


def test_a_fixed_power_of_another_shape(tmp_path):
    """It is no parameter, but belongs to the model as much as one."""
    net, other = Net(), Net()
    net.pool = GeM(p_trainable=False)
    other.pool = GeM(channels=4)
    checkpoint = dict(state_dict=other.state_dict())
    assert 'pool.p ((4) in place of (1))' in refusal(
        tmp_path, checkpoint, model=net)
    found = load(tmp_path, checkpoint, partial=True, model=net)
    assert torch.equal(found.head.weight, other.head.weight)
    assert found.pool.p == 3


def test_training_from_a_part(tmp_path, said):
    """A number of classes of one's own: the trunk is loaded, with a word."""
    net = Net(classes=5)
    found = load(tmp_path, dict(state_dict=net.state_dict()), partial=True)
    for name, value in net.trunk.state_dict().items():
        assert torch.equal(found.trunk.state_dict()[name], value), name
    text, = said
    for word in ('WARNING: ', 'head.weight ((5, 4)', 'lacks 2 of the 8',
                 'INITIAL VALUES'):
        assert word in text
    load(tmp_path, dict(state_dict=Net().state_dict()), partial=True)
    assert len(said) == 1


def resume(tmp_path, change):
    make_runner(tmp_path / 'a', epochs=1).train()
    path = tmp_path / 'a/epoch_1.pth'
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    runner = make_runner(tmp_path / 'b', resume=True, load_from=str(path))
    # Where training loads only in part, resuming takes all or nothing.
    runner.register_hook(CheckpointFitHook())
    runner.train()


def test_resuming(tmp_path):
    resume(tmp_path, lambda checkpoint: checkpoint.update(new=1))
    assert (tmp_path / 'b/epoch_2.pth').exists()


def test_resuming_does_not_run_a_config(tmp_path):
    """Nor where no tool has looked at the checkpoint before."""
    ran = tmp_path / 'ran'
    code = f"open({str(ran)!r}, 'w').close()"
    with pytest.raises(UserError, match="config in meta.'config'"):
        resume(tmp_path, lambda c: c['meta'].update(config=code))
    assert not ran.exists()
