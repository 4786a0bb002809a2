"""The benchmark measures what it says. How fast anything is, nobody asks."""
import json
import math
import os

import pytest
import torch

pytestmark = pytest.mark.usefixtures('tools_on_path')
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def timing(tools_on_path):
    from benchmarks import timing
    return timing


@pytest.fixture(scope='module')
def operations(tools_on_path):
    from benchmarks import operations
    return operations


@pytest.fixture(scope='module')
def page(tools_on_path):
    from pages import performance
    return performance


class WrongGradient(torch.autograd.Function):
    """The square, with the gradient of another function."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad


def broken(x):
    raise RuntimeError('no kernel\nand a long story')


def test_only_right_answers_are_timed(timing):
    x = torch.rand(8, requires_grad=True)
    forms = [
        timing.Form('stock', lambda x: x * x),
        timing.Form('same', lambda x: x.pow(2)),
        timing.Form('value', lambda x: x * x + 0.01),
        timing.Form('gradient', WrongGradient.apply),
        timing.Form('shape', lambda x: x[:4] * x[:4]),
        timing.Form('nan', lambda x: x * x * math.nan),
        timing.Form('broken', broken),
        timing.Form('other', lambda x: 3 * x, 'line'),
        timing.Form('other again', lambda x: x + x + x, 'line'),
    ]
    rows = {row['form']: row for row in timing.measure(
        timing.Work(forms, (x, )), 3, CPU)}
    for name in ('stock', 'same', 'other', 'other again'):
        row = rows.pop(name)
        assert row['status'] == 'ok'
        assert row['same_function'] == (not name.startswith('other'))
        for key in ('forward', 'backward', 'both'):
            assert 0 < row[key][0] <= row[key][1] <= row[key][2]
        for part in ('forward', 'backward'):
            assert row['both'][1] > row[part][1]
    assert rows.pop('broken')['status'] == 'failed: RuntimeError: no kernel'
    for row in rows.values():
        assert row['status'].startswith('wrong answer: differs by')
        assert 'forward' not in row


def test_extra_memory(timing):
    """Against buffers that are counted by hand."""
    x = torch.zeros(2**18)  # 1 MiB

    def two_at_once():
        y = x + 1
        return y * 2

    def one_after_the_other():
        for _ in range(3):
            x.clone()

    for step, size in ((two_at_once, 2), (one_after_the_other, 1)):
        assert timing.extra_memory(step, CPU) == pytest.approx(
            size * 2**20, abs=1024)


class FakeEvent:
    """An event on the way of a GPU that takes 5 ms for each call."""
    calls = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = 5.0 * FakeEvent.calls

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.time - self.time


def test_time_of_the_gpu_alone(timing, monkeypatch):
    """Between two events around all calls, per call; in seconds."""
    def call():
        FakeEvent.calls += 1

    monkeypatch.setattr(torch.cuda, 'Event', FakeEvent)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    timer = timing.Timer(timing.Form('f', call), (), torch.device('cuda'))
    timer.calls = 3
    assert timer.time()['device'] == pytest.approx(0.005)


def test_operations_on_a_backend(operations, monkeypatch):
    """The environment decides for all that a form calls."""
    monkeypatch.setenv('SIGPLUG_BACKEND', 'other')
    seen = [form.call() for form in operations.ours(
        lambda: os.environ['SIGPLUG_BACKEND'])]
    assert seen == ['auto', 'eager']


@pytest.mark.parametrize('name', ['pillars of 0.2 m', 'voxels of 0.075 m'])
def test_voxels_are_those_of_mmcv(operations, timing, monkeypatch, name):
    """The case compares them; here on few points, in any order."""
    points = 2 * torch.rand(2, 500, 5) - 1
    monkeypatch.setattr(operations, 'lidar_points', lambda: list(points))
    case, = (case for case in operations.CASES if name in case.name)
    work = case.build(CPU)
    expected, found = (timing.Timer(form, work.args, CPU).answer()
                       for form in work.forms)
    assert timing.compare(expected, found) == 0
    assert found[2].sum() == 1000 and found[1][:, 0].unique().tolist() == [
        0, 1]


def test_goals_are_of_forms_that_are_there(operations):
    """In the case with forms of all kinds."""
    assert len({case.name for case in operations.CASES}) == len(
        operations.CASES)
    case = next(case for case in operations.CASES if 'loss' in case.name)
    forms = {form.name for form in case.build(CPU).forms}
    assert {name for goal in case.goals
            for name in (goal.form, goal.against)} <= forms


# -- Tables ------------------------------------------------------------------


def row(form, forward, backward, **changes):
    return dict(form=form, same_function=True, status='ok',
                extra_bytes=2**21, forward=[forward] * 3,
                backward=[backward] * 3, both=[forward + backward] * 3
                ) | changes


def test_losses_and_failures_are_shown(page):
    rows = [row('stock', 1.0, 3.0), row('sigplug', 2.0, 6.0),
            row('other', 1.0, 1.0, same_function=False),
            dict(form='peer', same_function=True, status='failed: why')]
    assert page.case_table(dict(rows=rows)).splitlines()[2:] == [
        '| stock | 1000 | 3000 | 4000 | 4000 to 4000 | 1.00 | 2.00 |',
        '| sigplug | 2000 | 6000 | 8000 | 8000 to 8000 | 0.500 | 2.00 |',
        '| *other* | 1000 | 1000 | 2000 | 2000 to 2000 | 2.00 | 2.00 |',
        '| peer (failed: why) | - | - | - | - | - | - |']
    # On a GPU there is one column more.
    rows = [row('stock', 1.0, 3.0, device=[3.5] * 3), rows[-1]]
    header, _, first, second = page.case_table(dict(rows=rows)).splitlines()
    assert '| both, ms | GPU alone, ms |' in header
    assert '| 4000 | 3500 | 4000 to 4000 |' in first
    assert second.count(' - ') == 7


def test_headlines(page, operations):
    """As times as fast, or as cost where that is the goal."""
    case = next(case for case in operations.CASES if 'GeM' in case.name)
    rows = [row(operations.MMPRETRAIN, 2.0, 4.0), row('sigplug', 0.5, 1.0),
            row(operations.AVERAGE, 0.5, 0.5, same_function=False)]
    assert page.headline_rows([dict(case=case.name, rows=rows)]) == [
        [f'{case.name}: sigplug', "times as fast as mmpretrain's formula",
         '4.00', '5 or more'],
        [f'{case.name}: sigplug', 'times the cost of adaptive_avg_pool2d',
         '1.50', '2.2 or less']]


# -- The tool ----------------------------------------------------------------


def test_run_and_page(tmp_path, run_here, page, operations, timing,
                      monkeypatch):
    work = timing.Work([timing.Form('stock', torch.exp),
                        timing.Form('sigplug', lambda x: x.exp())],
                       (torch.rand(8), ))
    monkeypatch.setattr(operations, 'CASES', tuple(
        operations.Case(name, lambda device: work) for name in ('a', 'ab')))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', '')
    code, printed = run_here(
        'analysis_tools/benchmark.py', 'ops', '--repeat', 2, '--threads', 1,
        '--filter', 'b', '--out', 'results', cwd=tmp_path)
    assert code == 0, printed.err
    run = json.loads((tmp_path / 'results/ops.json').read_text())
    assert run['threads'] == 1 and run['repeat'] == 2
    (case, ) = run['results']
    assert case['case'] == 'ab'
    assert [row['status'] for row in case['rows']] == ['ok'] * 2
    code, printed = run_here(
        'analysis_tools/report.py', 'performance', '--results', 'results',
        '--out', 'new/page.md')
    assert printed.out == 'new/page.md\n'
    text = (tmp_path / 'new/page.md').read_text()
    assert page.case_table(case) in text
    # A part that was not measured says so.
    assert page.UNKNOWN in text.split('## Training')[1]


@pytest.mark.parametrize(('args', 'message'), [
    (['ops', '--filter', 'nothing'], "--filter 'nothing' finds none of"),
    (['--device', 'tpu7'], "must be cpu, cuda or cuda:N, got 'tpu7'"),
    pytest.param(
        ['--device', 'cuda'], '--device cuda:0: torch finds no GPU here',
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU')),
])
def test_usage_errors(tmp_path, monkeypatch, fail, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fail('analysis_tools/benchmark.py', *args)


def test_a_page_needs_results(tmp_path, fail):
    assert 'run benchmark.py first' in fail(
        'analysis_tools/report.py', 'performance', '--out', 'page.md',
        cwd=tmp_path)
    assert not list(tmp_path.iterdir())


# -- A training --------------------------------------------------------------


@pytest.mark.slow
def test_training_iterations(page, run_tool, tmp_path):
    """The quickstart and its twin, on synthetic points."""
    run_tool('analysis_tools/benchmark.py', 'train', '--quick', '--repeat', 2,
             '--threads', 1, '--out', 'results', cwd=tmp_path)
    run = json.loads((tmp_path / 'results/train.json').read_text())
    (group, ) = run['results']
    assert group['input'].startswith('1 samples of the synthetic data set')
    assert [row['config'] for row in group['rows']] == ['stock', 'sigplug']
    for row in group['rows']:
        *stages, whole = (row['stages'][name] for name in page.STAGES)
        assert min(stages) > 0
        assert sum(stages) == pytest.approx(whole, rel=0.3)
    assert '| times stock | 1.00 |' in page.training_table(group)
