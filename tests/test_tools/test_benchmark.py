"""The benchmark measures what it says. How fast anything is, nobody asks."""
import json
import math

import pytest
import torch
from benchmarks import detectors, operations, timing
from pages import performance as page

CPU = torch.device('cpu')


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


def test_only_right_answers_are_timed():
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


def test_extra_memory():
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


@pytest.mark.parametrize(('build', 'arguments', 'changes'), [
    ('sigmoid_case', (torch.bfloat16, (64, )), {}),
    ('loss_case', ((2, 3, 16, 16), ), {}),
    ('loss_case', ((2, 3, 16, 16), ), dict(dtype=torch.bfloat16)),
    ('gem_case', ((2, 3, 7, 7), ),
     dict(memory_format=torch.channels_last)),
    ('gem_case', ((2, 3, 7, 7), ), dict(dtype=torch.bfloat16)),
    ('window_case', (2, 2, (2, 3, 8, 8)), {}),
    ('window_case', (3, 1, (2, 3, 8, 8)), {}),
    ('segment_case', (60, 7), {}),
    ('heatmap_case', (9, (4, 20, 20)), {}),
])
def test_forms_agree(monkeypatch, build, arguments, changes):
    """Those of the cases for a GPU too, small and on the CPU."""
    # Takes its time, and is not what is tested.
    monkeypatch.setattr(torch, 'compile', lambda form, dynamic: form)
    work = getattr(operations, build)(*arguments, CPU, **changes)
    rows = timing.measure(work, 1, CPU)
    assert {row['status'] for row in rows} == {'ok'}
    assert 'sigplug' in {row['form'] for row in rows}


@pytest.mark.parametrize('name', ['pillars of 0.2 m', 'voxels of 0.075 m'])
def test_voxels_are_those_of_mmcv(monkeypatch, name):
    """The case compares them; here on few points, in any order."""
    points = 2 * torch.rand(2, 500, 5) - 1
    monkeypatch.setattr(operations, 'scans', lambda device: list(points))
    case, = (case for case in operations.CASES if name in case.name)
    work = case.build(CPU)
    expected, found = (timing.Timer(form, work.args, CPU).answer()
                       for form in work.forms)
    assert timing.compare(expected, found) == 0
    assert found[2].sum() == 1000 and found[1][:, 0].unique().tolist() == [
        0, 1]


# -- Tables ------------------------------------------------------------------


def row(form, forward, backward, **changes):
    return dict(form=form, same_function=True, status='ok',
                extra_bytes=2**21, forward=[forward] * 3,
                backward=[backward] * 3, both=[forward + backward] * 3
                ) | changes


def test_operation_table():
    """Wall time, time of the GPU alone, and what is not known."""
    rows = [row('stock', 1.0, 3.0), row(operations.COMPILED, 1.0, 1.0),
            row('sigplug', 0.5, 0.5)]
    cases = [
        dict(case='all', rows=rows),
        dict(case='alone', rows=[row('sigplug', 1.0, 1.0)]),
        dict(case='failed', rows=[rows[0], dict(
            form='sigplug', same_function=True, status='failed: why')]),
        dict(case='error', rows=[], error='failed: why')]
    assert page.operation_table(cases).splitlines() == [
        '| operation | ms | times stock | times compiled |',
        '| --- | ---: | ---: | ---: |', '| all | 1000 | 4.00 | 2.00 |',
        '| alone | 2000 | - | - |', '| failed | - | - | - |',
        '| error | - | - | - |']
    rows[0]['device'] = [3.0] * 3
    rows[2] |= dict(device=[0.5] * 3, host=[2e-5] * 3)
    header, _, first, second, *_ = page.operation_table(cases).splitlines()
    assert header.endswith(
        '| GPU alone, ms | times stock | times compiled | host, µs |')
    assert first == '| all | 1000 | 4.00 | 2.00 | 500 | 6.00 | - | 20.0 |'
    assert second == f'| alone | 2000 |{" - |" * 6}'


# -- The tool ----------------------------------------------------------------


def test_run_and_page(tmp_path, succeed, monkeypatch):
    work = timing.Work([timing.Form('stock', torch.exp),
                        timing.Form('sigplug', lambda x: x.exp())],
                       (torch.rand(8), ))

    def broken_case(device):
        raise RuntimeError('no such kernel')

    monkeypatch.setattr(operations, 'CASES', (
        operations.Case('a', broken_case), operations.Case('b', broken_case),
        operations.Case('ab', lambda device: work)))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', '')
    printed = succeed(
        'analysis_tools/benchmark.py', 'ops', '--repeat', 2, '--threads', 1,
        '--filter', 'b', '--out', 'results', cwd=tmp_path)
    run = json.loads((tmp_path / 'results/cpu.json').read_text())['ops']
    assert run['threads'] == 1 and run['repeat'] == 2
    failed, case = run['results']
    assert failed['error'] == 'failed: RuntimeError: no such kernel'
    assert failed['error'] in printed
    assert case['case'] == 'ab'
    assert [row['status'] for row in case['rows']] == ['ok'] * 2
    assert succeed(
        'analysis_tools/report.py', 'performance', '--results', 'results',
        '--out', 'new/page.md') == 'new/page.md\n'
    text = (tmp_path / 'new/page.md').read_text()
    assert page.case_table(case) in text
    assert (tmp_path / 'new/images/speedups.png').is_file()
    # A part that was not measured says so.
    assert page.UNKNOWN in text.split('## Training')[1]
    assert not (tmp_path / 'new/page_gpu.md').exists()


@pytest.mark.parametrize(('args', 'message'), [
    (['benchmark.py', 'ops', '--filter', 'nothing'],
     "--filter 'nothing' finds none of"),
    pytest.param(
        ['benchmark.py', '--device', 'cuda'],
        '--device cuda: torch finds no GPU here',
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU')),
    (['report.py', 'performance', '--out', 'page.md'],
     'run benchmark.py first'),
])
def test_usage_errors(tmp_path, fail, args, message):
    tool, *args = args
    assert message in fail(f'analysis_tools/{tool}', *args, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


# -- Models ------------------------------------------------------------------


@pytest.mark.parametrize('name', ['CIRCLE', 'VOXEL'])
def test_kinds_of_a_model(name):
    """Each has the parts of the one before it, and some more."""
    from mmengine.config import Config
    model = Config.fromfile(detectors.CONFIGS[getattr(detectors, name)]).model
    kinds = [detectors.change(model, kind) for kind in detectors.KINDS]
    found = [str(kind).count("'sigplug.") for kind in kinds]
    assert kinds[0] == model
    assert found == ([0, 1, 3, 4] if name == 'CIRCLE' else [0, 1, 2, 2])
    assert [kind.pts_bbox_head.loss_cls.type for kind in kinds] == [
        *['mmdet.GaussianFocalLoss'] * 3, 'GaussianFocalLossWithLogits']


@pytest.mark.slow
@pytest.mark.parametrize('what', ['train', 'frame'])
def test_models_by_stage(run_tool, tmp_path, what):
    run_tool('analysis_tools/benchmark.py', what, '--quick', '--repeat', 1,
             '--threads', 1, '--filter', 'fp32', '--out', 'results',
             cwd=tmp_path)
    results = tmp_path / 'results'
    case, = json.loads((results / 'cpu.json').read_text())[what]['results']
    assert 'pillar04' in case['case'] and len(case['rows']) == 4
    for row in case['rows']:
        *stages, whole = (row['stages'][name] for name in page.STAGES
                          if name in row['stages'])
        assert min(stages) > 0
        assert sum(stages) == pytest.approx(whole)
    answers = [row['loss' if what == 'train' else 'boxes']
               for row in case['rows'][:3]]
    assert answers == pytest.approx(answers[:1] * 3, rel=1e-5)
    table = page.stage_table(case)
    assert '| times stock | 1.00 |' in table
    # Of a GPU, more is shown.
    case['rows'][1] = dict(config='head', error='failed: why')
    case['rows'][2]['waits'] = {'a.py:3': 4, 'b.py:5': 1}
    (results / 'cpu.json').rename(results / 'cuda.json')
    table = page.stage_table(case)
    assert '| waits for the GPU | 0 | 5 | 0 |' in table
    assert '- `head` failed: why' in table
    assert 'waits at `a.py:3`, `b.py:5`' in table
    assert page.summary_rows([case])[0][2] == 'failed'
    assert page.write(results, tmp_path / 'page.md') == [
        tmp_path / 'page_gpu.md']
    assert case['case'] in (tmp_path / 'page_gpu.md').read_text()
