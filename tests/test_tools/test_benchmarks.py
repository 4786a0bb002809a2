"""The benchmarks measure what they say. How fast anything is, nobody asks."""
import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures('tools_on_path')
PAGE = Path(__file__).resolve().parents[2] / 'docs/performance.md'
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def bench(tools_on_path):
    import benchmarking
    return benchmarking


@pytest.fixture(scope='module')
def ops(tools_on_path):
    import benchmark_ops
    return benchmark_ops


@pytest.fixture(scope='module')
def report(tools_on_path):
    import report_performance
    return report_performance


@pytest.fixture(scope='module')
def train(tools_on_path):
    pytest.importorskip('mmdet3d')
    import benchmark_train
    return benchmark_train


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


def test_only_right_answers_are_timed(bench):
    x = torch.rand(8, requires_grad=True)
    forms = [
        bench.Form('stock', lambda x: x * x),
        bench.Form('same', lambda x: x.pow(2)),
        bench.Form('value', lambda x: x * x + 0.01),
        bench.Form('gradient', WrongGradient.apply),
        bench.Form('shape', lambda x: x[:4] * x[:4]),
        bench.Form('nan', lambda x: x * x * math.nan),
        bench.Form('broken', broken),
        bench.Form('missing', None, package='some-package'),
        bench.Form('other', lambda x: 3 * x, 'line'),
        bench.Form('other again', lambda x: x + x + x, 'line'),
    ]
    results = {result.name: result for result in bench.measure(
        bench.Work(forms, (x, )), 3, CPU)}
    timed = ['stock', 'same', 'other', 'other again']
    for name in timed:
        seconds = results[name].seconds
        assert set(seconds) == {'forward', 'backward', 'both'}
        assert results[name].status == 'ok' and results[name].calls >= 1
        for forward, backward, both in zip(*seconds.values()):
            assert both == forward + backward and min(forward, backward) > 0
        assert len(seconds['both']) == 3
    for name in ('value', 'gradient', 'shape', 'nan'):
        assert results[name].status.startswith('wrong answer: differs by')
    assert results['broken'].status == 'failed: RuntimeError: no kernel'
    assert results['missing'].status == (
        'not installed: pip install some-package')
    assert all(not r.seconds for r in results.values() if r.name not in timed)
    assert [r.name for r in results.values() if not r.same_function] == [
        'other', 'other again']


def test_forms_take_turns(bench, monkeypatch):
    order = []
    monkeypatch.setattr(bench, 'count_calls', lambda *_: 2)
    forms = [bench.Form(name, lambda x, name=name: order.append(name) or x)
             for name in 'abc']
    bench.measure(bench.Work(forms, (torch.ones(1), )), 4, CPU)
    assert ''.join(order[-24:]) == 4 * 'aabbcc'


def test_a_form_without_gradient_is_a_forward_only(bench):
    work = bench.Work([bench.Form('sum', torch.sum)], (torch.ones(3), ))
    result, = bench.measure(work, 2, CPU)
    assert list(result.seconds) == ['forward']


def test_leaves_of_a_form(bench):
    x = torch.ones(2, requires_grad=True)
    work = bench.Work([], (x, torch.ones(2), 3))
    assert work.leaves(bench.Form('a', None)) == (x, )
    assert work.leaves(bench.Form('a', None, leaves=())) == ()


def test_extra_memory(bench):
    """Against buffers that are counted by hand."""
    x = torch.zeros(2**18)  # 1 MiB

    def two_at_once():
        y = x + 1
        return y * 2

    def one_after_the_other():
        for _ in range(3):
            x.clone()

    assert bench.extra_memory(two_at_once, CPU) == pytest.approx(
        2 * 2**20, abs=1024)
    assert bench.extra_memory(one_after_the_other, CPU) == pytest.approx(
        2**20, abs=1024)


def test_difference_is_relative_to_the_largest_value(bench):
    expected = [torch.tensor([100.0, 1.0]), torch.tensor([])]
    assert bench.compare(expected, expected) == 0
    actual = [torch.tensor([100.0, 2.0]), torch.tensor([])]
    assert bench.compare(expected, actual) == pytest.approx(0.01)
    assert bench.compare([torch.zeros(2)], [torch.full((2, ), 0.5)]) == 0.5
    assert bench.compare(expected, expected[:1]) == math.inf


def test_quartiles(bench):
    values = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0]
    assert bench.quartiles(values) == pytest.approx(
        np.percentile(values, [25, 50, 75]))
    assert bench.quartiles([2.0]) == (2.0, 2.0, 2.0)


def test_copy_bandwidth(bench, monkeypatch):
    """1 MiB that is read and written in 1 ms."""
    monkeypatch.setattr(bench, 'COPY_BYTES', 2**20)
    monkeypatch.setattr(bench, 'measure', lambda *_: [
        SimpleNamespace(seconds=dict(forward=[9.0, 1e-3, 1e-4]))])
    assert bench.copy_bandwidth(CPU, 3) == pytest.approx(2e3 * 2**20)


def make_result(bench, name, forward, backward, **kwargs):
    seconds = dict(forward=[forward], backward=[backward],
                   both=[forward + backward])
    return bench.Result(name, True, seconds=seconds, **kwargs)


@pytest.fixture
def rows(bench, ops):
    """Stock takes 1 + 3 s, ours 2 + 6, a third one is not there."""
    case = ops.Case(ops.LOSS.format(128), None)
    work = bench.Work([], (), moved=(10, 30))
    results = [
        make_result(bench, ops.MMDET, 1.0, 3.0),
        make_result(bench, ops.OURS, 2.0, 6.0, extra_bytes=2**21),
        make_result(bench, ops.OURS + ', clip=None', 1.0, 1.0),
        bench.Result('peer', True, status='not installed: pip install x'),
    ]
    results[2].same_function = False
    return list(ops.rows_of(case, work, results, bandwidth=20.0))


def test_rows(ops, rows):
    assert [row['pass'] for row in rows] == 3 * [
        'forward', 'backward', 'both'] + ['forward']
    mine = [row for row in rows if row['form'] == ops.OURS]
    assert [row['ratio'] for row in mine] == [0.5, 0.5, 0.5]
    assert [row['bytes_moved'] for row in mine] == [10, 30, 40]
    # 10 bytes at 20 bytes per second, in 2 s.
    assert [row['share_of_limit'] for row in mine] == [0.25, 0.25, 0.25]
    assert rows[-1]['median_s'] is rows[-1]['ratio'] is None


def test_headlines(ops, rows):
    lines = {line['against']: line for line in ops.headlines_of(rows)}
    line = lines[f'times as fast as {ops.MMDET}']
    assert (line['ratio'], line['goal']) == (0.5, '8 or more')
    line = lines[f'times as fast as {ops.OURS}']
    assert (line['ratio'], line['goal']) == (4.0, '1 or more')
    assert len(lines) == 2


def test_headline_of_a_cost(ops, rows, monkeypatch):
    case = ops.LOSS.format(128)
    monkeypatch.setattr(ops, 'HEADLINES', [
        ops.Headline(case, ops.OURS, ops.MMDET, at_most=2.2)])
    line, = ops.headlines_of(rows)
    assert (line['ratio'], line['goal']) == (2.0, '2.2 or less')
    assert line['against'] == f'times the cost of {ops.MMDET}'


def test_headlines_are_measured(ops):
    """Their cases and forms exist."""
    pytest.importorskip('mmdet3d')
    cases = {case.name: case for case in ops.CASES}
    assert len(cases) == len(ops.CASES)
    names = {}
    for line in ops.HEADLINES:
        if line.case not in names:
            work = cases[line.case].build(CPU)
            names[line.case] = [form.name for form in work.forms]
        assert {line.form, line.against} <= set(names[line.case])


def test_losses_and_missing_peers_are_shown(report, rows):
    table = report.case_table(rows)
    ours, exact, peer = table.splitlines()[3:]
    assert ours.startswith('| sigplug | 2000 | 6000 | 8000 | 8000 to 8000 | '
                           '0.500 | 25.0 | 2.00 |')
    assert exact.startswith('| *sigplug, clip=None* | 1000 | 1000 | 2000 ')
    assert peer == ('| peer (not installed: pip install x) | - | - | - | - | '
                    '- | - | - |')


@pytest.mark.parametrize(('value', 'text'), [
    (1234.6, '1235'), (123.46, '123'), (1.2345, '1.23'), (0.012345, '0.0123'),
    (0.0, '0'), (None, '-'), (math.nan, '-'),
])
def test_three_digits(report, value, text):
    assert report.sig3(value) == text


def test_operations_on_a_backend(ops, monkeypatch):
    """The environment decides for all that a form calls."""
    monkeypatch.setenv('SIGPLUG_BACKEND', 'other')
    seen = [form.call() for form in ops.ours(
        lambda: os.environ['SIGPLUG_BACKEND'])]
    assert seen == ['auto', 'eager']


def test_peers(ops):
    form = ops.peer('math', 'math', 'x', lambda module: module.sqrt)
    assert form.call(4) == 2
    form = ops.peer('none', 'no_such_module', 'some-package', None)
    assert form.call is None and form.package == 'some-package'


def test_power_mean_of_segments():
    """Against numpy, and PyTorch Geometric where it is installed."""
    import stock_forms
    x = 0.2 + torch.rand(20, 3, dtype=torch.float64)
    index = torch.randint(4, (20, ))
    y = stock_forms.power_mean_aggregation(x, index, 4, 2.5)
    for segment in index.unique():
        rows = x[index == segment].numpy()
        np.testing.assert_allclose(
            y[segment], np.mean(rows**2.5, 0)**(1 / 2.5), rtol=1e-12)
    aggregation = pytest.importorskip('torch_geometric.nn.aggr')
    layer = aggregation.PowerMeanAggregation(p=2.5, learn=True)
    torch.testing.assert_close(
        stock_forms.power_mean_aggregation(x.float(), index, 4, layer.p),
        layer(x.float(), index, dim_size=4), rtol=0, atol=0)


def test_textbook_gem_is_that_of_mmpretrain():
    import stock_forms
    module = stock_forms.import_alone('mmpretrain.models.necks.gem')
    x, p = torch.randn(2, 3, 5, 7), torch.tensor([3.5])
    assert stock_forms.gem(x, p).equal(module.gem(x, p))
    assert stock_forms.import_alone(module.__name__) is module


@pytest.mark.parametrize('name', ['no_such_package.x', 'math.x', 'xml.dom.x'])
def test_a_module_that_is_missing(name):
    import stock_forms
    with pytest.raises(ImportError):
        stock_forms.import_alone(name)


def test_windows_of_the_textbook_gem():
    import stock_forms
    x = torch.rand(1, 1, 7, 7, dtype=torch.float64)
    y = stock_forms.gem(x, 3.0, kernel_size=3, stride=2)
    assert y.shape == (1, 1, 3, 3)
    window = x[0, 0, 2:5, 4:7].numpy()
    np.testing.assert_allclose(y[0, 0, 1, 2], np.mean(window**3)**(1 / 3))


def test_the_first_calls_start_from_empty_caches(ops, monkeypatch):
    """Each in a new process, the second with what the first has left."""
    seen = []

    def run(command, env, **_):
        seen.append(env['SIGPLUG_CACHE'])
        assert os.listdir(seen[-1]) == ['kernels'] * (len(seen) - 1)
        Path(seen[-1], 'kernels').touch()
        return SimpleNamespace(returncode=0, stdout=f'{len(seen)}.5')

    monkeypatch.setattr(ops.subprocess, 'run', run)
    rows = ops.time_compilation(CPU)
    assert [row['first_call_s'] for row in rows] == [1.5, 2.5]
    assert seen[0] == seen[1] and not Path(seen[0]).exists()


def test_the_program_of_a_first_call(ops):
    done = subprocess.run([sys.executable, '-c', ops.FIRST_CALL, 'cpu'],
                          env=dict(os.environ, SIGPLUG_BACKEND='eager'),
                          capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0


def test_a_busy_machine_is_named(bench, monkeypatch, capsys):
    args = SimpleNamespace(device=CPU, threads=1, repeat=1)
    monkeypatch.setattr(bench, 'busy_cores', lambda: 0.1)
    assert bench.describe(args)['load'] == 0.1
    assert not capsys.readouterr().err
    monkeypatch.setattr(bench, 'busy_cores', lambda: 1.9)
    assert bench.describe(args)['load'] == 1.9
    assert 'other processes keep 1.9 cores busy' in capsys.readouterr().err


def test_busy_cores(bench, monkeypatch):
    """3 s of processor time in 2 s."""
    times = iter([10.0, 13.0])
    monkeypatch.setattr(bench, 'read_busy_seconds', lambda: next(times))
    monkeypatch.setattr(bench, 'sleep', lambda seconds: None)
    assert bench.busy_cores(2.0) == 1.5


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_busy_seconds(bench):
    """At least what this process itself has used in between."""
    before, used = bench.read_busy_seconds(), time.process_time()
    while time.process_time() < used + 0.2:
        pass
    assert bench.read_busy_seconds() - before > 0.15


@pytest.fixture(scope='module')
def results(tmp_path_factory, run_tool):
    """The folder that a small run writes, and what it printed."""
    folder = tmp_path_factory.mktemp('bench')
    printed = run_tool(
        'analysis_tools/benchmark_ops.py', '--quick', '--repeat', 2,
        '--threads', 1, '--filter', 'curve of gaussian_heatmap', '--out',
        'results', cwd=folder)
    return folder / 'results', printed


def test_files_of_a_run(results):
    folder, printed = results
    names = ['ops.json', 'ops.csv', 'ops.md', 'performance_boxes.png']
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert printed.splitlines()[-4:] == [f'results/{name}' for name in names]
    run = json.loads((folder / 'ops.json').read_text())
    assert run['threads'] == 1 and run['repeat'] == 2
    assert run['command'].startswith(
        'python tools/analysis_tools/benchmark_ops.py --quick --repeat 2 ')
    assert run['copy_bytes_per_s'] > 0
    rows = run['rows']
    assert {row['x'] for row in rows} == {10, 1000}
    assert all(row['median_s'] > 0 for row in rows if row['status'] == 'ok')
    with (folder / 'ops.csv').open(newline='') as file:
        table = list(csv.DictReader(file))
    assert [float(row['q1_s'] or 'nan') for row in table] == pytest.approx(
        [row['q1_s'] or math.nan for row in rows], nan_ok=True)
    assert '| boxes | mmdet3d loop, ms | sigplug, ms |' in (
        folder / 'ops.md').read_text()
    picture = matplotlib.image.imread(folder / 'performance_boxes.png')
    assert picture.shape[:2] == (700, 1200)


def test_page(results, run_tool, tmp_path, report):
    printed = run_tool(
        'analysis_tools/report_performance.py', '--results', results[0],
        '--out', 'new/page.md', cwd=tmp_path)
    assert printed.splitlines() == [
        'new/page.md', 'new/images/performance_boxes.png']
    page = (tmp_path / 'new/page.md').read_text()
    assert '| boxes | mmdet3d loop, ms | sigplug, ms |' in page
    # What was not measured says so.
    training = page.split('## Training')[1]
    assert training.count(report.UNKNOWN) == 2


def test_committed_page_is_of_the_template(report):
    """Every paragraph of the template stands on the page."""
    page = PAGE.read_text(encoding='utf-8')
    template = report.TEMPLATE.read_text(encoding='utf-8')
    for part in re.split(r'\$\w+', template):
        assert part.strip() in page
    assert report.UNKNOWN not in page


@pytest.mark.parametrize(('tool', 'args', 'message'), [
    ('ops', ['--filter', '['], "--filter '[' is not a regular expression"),
    ('ops', ['--filter', 'nothing'], "--filter 'nothing' finds none of"),
    ('ops', ['--threads', '0'], '--threads must be at least 1, got 0'),
    ('ops', ['--repeat', '0'], '--repeat must be at least 1, got 0'),
    ('ops', ['--device', 'tpu7'], "must be cpu, cuda or cuda:N, got 'tpu7'"),
    ('train', ['--batch-size', '0'], '--batch-size must be at least 1, got 0'),
])
def test_usage_errors(request, monkeypatch, capsys, tool, args, message):
    monkeypatch.setattr(sys, 'argv', ['tool', *args])
    with pytest.raises(SystemExit) as error:
        request.getfixturevalue(tool).parse_args()
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('device, index', [('cuda', 0), ('cuda:1', 1)])
def test_the_gpu_is_the_one_that_is_waited_for(monkeypatch, tmp_path, ops,
                                               device, index):
    chosen = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.set_device', chosen.append)
    monkeypatch.setattr(
        sys, 'argv', ['tool', '--device', device, '--out', str(tmp_path)])
    ops.parse_args()
    assert chosen == [index]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_missing_gpu_is_named(ops, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['tool', '--device', 'cuda'])
    with pytest.raises(SystemExit):
        ops.parse_args()
    assert '--device cuda: torch finds no GPU' in capsys.readouterr().err


def test_a_page_needs_results(report, tmp_path):
    with pytest.raises(SystemExit, match='run benchmark_ops.py or'):
        report.write_page(tmp_path, tmp_path / 'page.md')
    assert not list(tmp_path.iterdir())


def test_stopwatch_counts_a_stage_inside_another_once(train, monkeypatch):
    times = iter([0.0, 1.0, 3.0, 3.5, 4.5, 10.0])
    monkeypatch.setattr(train, 'perf_counter', lambda: next(times))
    clock = train.Stopwatch(lambda: None)
    owner = SimpleNamespace(targets=lambda x: x + 1)
    clock.watch(owner, 'targets', 'targets')
    with clock.stage('loss'):
        assert owner.targets(1) == 2
        assert owner.targets(2) == 3
    assert clock.seconds == dict(targets=3.0, loss=7.0)


@pytest.mark.slow
def test_training_iterations(train, report, run_tool, tmp_path):
    """The quickstart and its twin, on synthetic points."""
    run_tool('analysis_tools/benchmark_train.py', '--quick', '--repeat', 2,
             '--threads', 1, '--out', 'results', cwd=tmp_path)
    run = json.loads((tmp_path / 'results/training.json').read_text())
    assert [row['config'] for row in run['rows']] == ['stock', 'sigplug']
    for row in run['rows']:
        stages = dict(row['stages'])
        whole = stages.pop('iteration')
        assert set(stages) == set(report.STAGES)
        assert sum(stages.values()) == pytest.approx(whole, rel=0.3)
        assert re.match(r'1 samples of the synthetic data set with \d{5} '
                        r'points and [1-9]\d* boxes', row['input'])
    text = (tmp_path / 'results/training.md').read_text()
    assert f"### {run['rows'][1]['name']}\n" in text
    assert len(re.findall(r'^\| (first|third) quartile', text, re.M)) == 2
    picture = matplotlib.image.imread(
        tmp_path / 'results/performance_training.png')
    assert picture.shape[1] == 1500
