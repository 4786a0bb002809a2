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


def test_operations_on_a_backend(operations, monkeypatch):
    """The environment decides for all that a form calls."""
    monkeypatch.setenv('SIGPLUG_BACKEND', 'other')
    seen = [form.call() for form in operations.ours(
        lambda: os.environ['SIGPLUG_BACKEND'])]
    assert seen == ['auto', 'eager']


def test_headlines_are_measured(operations):
    names = [case.name for case in operations.CASES]
    assert len(set(names)) == len(names)
    assert {line.case for line in operations.HEADLINES} <= set(names)


# -- Tables ------------------------------------------------------------------


@pytest.fixture
def case(operations):
    """Stock takes 1 + 3 s, ours 2 + 6, a third one has failed."""

    def row(name, forward, backward, same=True):
        return dict(form=name, same_function=same, status='ok',
                    extra_bytes=2**21, forward=[forward] * 3,
                    backward=[backward] * 3, both=[forward + backward] * 3)

    return dict(case=operations.LOSS.format(128), rows=[
        row(operations.MMDET, 1.0, 3.0), row(operations.OURS, 2.0, 6.0),
        row(operations.OURS + ', clip=None', 1.0, 1.0, same=False),
        dict(form='peer', same_function=True, status='failed: why')])


def test_losses_and_failures_are_shown(page, case):
    rows = page.case_table(case).splitlines()[2:]
    assert rows == [
        '| mmdet3d + mmdet | 1000 | 3000 | 4000 | 4000 to 4000 | 1.00 '
        '| 2.00 |',
        '| sigplug | 2000 | 6000 | 8000 | 8000 to 8000 | 0.500 | 2.00 |',
        '| *sigplug, clip=None* | 1000 | 1000 | 2000 | 2000 to 2000 | 2.00 '
        '| 2.00 |',
        '| peer (failed: why) | - | - | - | - | - | - |']


# -- The tool ----------------------------------------------------------------


def test_run_and_page(tmp_path, run_here, page, monkeypatch):
    for name in ('SIGPLUG_BACKEND', 'TORCHINDUCTOR_CACHE_DIR'):
        monkeypatch.setenv(name, 'auto')
    code, printed = run_here(
        'analysis_tools/benchmark.py', 'ops', '--repeat', 2, '--threads', 1,
        '--filter', '30 boxes', '--out', 'results', cwd=tmp_path)
    assert code == 0, printed.err
    run = json.loads((tmp_path / 'results/ops.json').read_text())
    assert run['threads'] == 1 and run['repeat'] == 2
    assert run['command'].startswith(
        'python tools/analysis_tools/benchmark.py ops --repeat 2 ')
    (case, ) = run['results']
    assert [row['status'] for row in case['rows']] == ['ok'] * 3
    code, printed = run_here(
        'analysis_tools/report.py', 'performance', '--results', 'results',
        '--out', 'new/page.md')
    assert printed.out == 'new/page.md\n'
    text = (tmp_path / 'new/page.md').read_text()
    assert page.case_table(case) in text
    # A part that was not measured says so.
    assert page.UNKNOWN in text.split('## Training')[1]


def test_a_page_needs_results(page, tmp_path):
    with pytest.raises(SystemExit, match='run benchmark.py'):
        page.write_page(tmp_path, tmp_path / 'page.md')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('args', 'message'), [
    (['ops', '--filter', 'nothing'], "--filter 'nothing' finds none of"),
    (['--device', 'tpu7'], "must be cpu, cuda or cuda:N, got 'tpu7'"),
    pytest.param(
        ['--device', 'cuda'], 'torch finds no GPU',
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU')),
])
def test_usage_errors(tmp_path, run_here, args, message):
    code, printed = run_here('analysis_tools/benchmark.py', *args,
                             cwd=tmp_path)
    assert message in (printed.err if code == 2 else code)


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
        assert sum(stages) == pytest.approx(whole, rel=0.3)
    assert '| times stock | 1.00 |' in page.training_table(group)
