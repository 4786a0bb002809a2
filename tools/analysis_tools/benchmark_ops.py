"""Time the operations against the stock forms, torch.compile and peers.

All forms of a case are checked against each other and then timed in turn in
one process: forward, backward and both. The results are written to --out as
JSON, CSV, Markdown and pictures.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import report_performance
import stock_forms
import torch
import torch.nn.functional as F
from benchmarking import (
    Form,
    Result,
    Work,
    add_common_arguments,
    bytes_of,
    check_common_arguments,
    copy_bandwidth,
    describe,
    measure,
    quartiles,
)
from torch import Tensor
from tqdm import tqdm

from sigplug.ops import (
    clip_sigmoid,
    gaussian_focal_loss_with_logits,
    gaussian_heatmap,
    gem_pool,
    segment_generalized_mean,
)

REPEAT = 15
EPS, GEM_EPS = 1e-4, 1e-6
OURS, EAGER, COMPILED = 'sigplug', 'sigplug eager', 'torch.compile of stock'
MMDET, MMDET3D = 'mmdet3d + mmdet', 'mmdet3d'
MMPRETRAIN = "mmpretrain's formula"
TEXTBOOK = 'textbook formula'
PYG = "PyG's formula"
NUM_CLASSES, MAP = 10, (128, 128)
PILLAR_CONFIG = ('mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_'
                 '8xb4-cyclic-20e_nus-3d.py')


# Prints the seconds of the first loss of a process.
FIRST_CALL = """
import sys
from time import perf_counter
import torch
from sigplug.ops import gaussian_focal_loss_with_logits
x = torch.zeros(4, 10, 128, 128, device=sys.argv[1], requires_grad=True)
start = perf_counter()
gaussian_focal_loss_with_logits(x, torch.zeros_like(x)).backward()
x.grad.sum().item()
print(perf_counter() - start)
"""


@dataclass(frozen=True)
class Case:
    """A row of the table of cases.

    Args:
        name (str): What --filter looks at, and the title of its table.
        build (Callable): Makes the forms and inputs, given the device.
        quick (bool): Whether --quick takes it.
        curve (str, optional): The curve that it is a point of.
        x (float | str, optional): Where on the curve.
    """

    name: str
    build: Callable[[torch.device], Work]
    quick: bool = True
    curve: str | None = None
    x: float | str | None = None


@dataclass(frozen=True)
class Headline:
    """A ratio that the operations are meant to reach.

    ``at_least`` times as fast as ``against``, or ``at_most`` as many times
    its cost.
    """

    case: str
    form: str
    against: str
    at_least: float | None = None
    at_most: float | None = None


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser, REPEAT)
    parser.add_argument(
        '--filter', default='', metavar='REGEX',
        help='only the cases in whose name this is found')
    args = parser.parse_args()
    check_common_arguments(parser, args, REPEAT)
    try:
        chosen = re.compile(args.filter)
    except re.error as error:
        parser.error(f'--filter {args.filter!r} is not a regular expression: '
                     f'{error}')
    args.cases = [case for case in CASES if chosen.search(case.name)
                  and (case.quick or not args.quick)]
    if not args.cases:
        names = '\n  '.join(case.name for case in CASES)
        parser.error(f'--filter {args.filter!r} finds none of the cases\n  '
                     f'{names}')
    return args


# Forms -------------------------------------------------------------------


def on_backend(function: Callable[..., Any],
               backend: str) -> Callable[..., Any]:
    """Something of ours with one backend in all that it calls.

    By the environment, as a head or a net passes no backend on.
    """

    def call(*args: Any) -> Any:
        os.environ['SIGPLUG_BACKEND'] = backend
        return function(*args)

    return call


def ours(function: Callable[..., Any], answer: str = '',
         suffix: str = '') -> list[Form]:
    """The two forms of an operation of ours."""
    return [Form(name + suffix, on_backend(function, backend), answer)
            for name, backend in ((OURS, 'auto'), (EAGER, 'eager'))]


def compiled(function: Callable[..., Any]) -> Form:
    """What torch.compile makes of a stock form."""
    # Each case counts as the first of its process.
    torch._dynamo.reset()
    return Form(COMPILED, torch.compile(function, dynamic=False))


def peer(name: str, module: str, package: str,
         make: Callable[[Any], Callable[..., Any]],
         load: Callable[[str], Any] = import_module, **kwargs: Any) -> Form:
    """A form of another package, which need not be installed."""
    try:
        return Form(name, make(load(module)), **kwargs)
    except ImportError:
        return Form(name, None, package=package, **kwargs)


# Inputs ------------------------------------------------------------------


def heatmap_logits(shape: tuple[int, ...], device: torch.device,
                   dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of a head in training: most cells low, some beyond the clip.

    None lies so close to the clip that rounding decides on its gradient.
    """
    x = 3 * torch.randn(shape, generator=generator()) - 2
    kink = np.log(1 / EPS - 1)
    x[(x.abs() - kink).abs() < 0.05] = 0
    return x.to(device, dtype).requires_grad_()


def generator() -> torch.Generator:
    """The same random numbers for every case."""
    return torch.Generator().manual_seed(0)


def objects(count: int, size: tuple[int, int],
            most: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, radii and labels of random objects."""
    seeded = generator()
    height, width = size
    centers = torch.stack([
        torch.randint(limit, (count, ), generator=seeded)
        for limit in (width, height)], dim=1)
    radii = torch.randint(2, most, (count, ), generator=seeded)
    labels = torch.randint(NUM_CLASSES, (count, ), generator=seeded)
    return centers, radii, labels


def target_maps(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Targets of the loss with 30 objects per sample."""
    batch, classes, *size = shape
    centers, radii, labels = objects(30 * batch, size)
    sample = torch.arange(len(labels)) % batch
    maps = gaussian_heatmap(centers, radii, sample * classes + labels,
                            batch * classes, size)
    return maps.view(shape).to(device)


def features(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Activations; none so small or large that a form's clamps show."""
    x = (torch.randn(shape, generator=generator()).abs() + 0.1).clamp(max=4)
    return x.to(device).requires_grad_()


def power(value: float, device: torch.device) -> Tensor:
    return torch.tensor([value], device=device, requires_grad=True)


@lru_cache
def lidar_points() -> list[Tensor]:
    """Two synthetic scans, one per sample, shape ``(M, 5)``."""
    generator = Path(__file__).resolve().parents[1] / (
        'dataset_converters/create_synthetic_nuscenes.py')
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        subprocess.run(
            [sys.executable, generator, '--out', root, '--workers', '1',
             '--samples-per-scene', '2', '--scenes', 'scene-0061'],
            check=True)
        scans = [np.fromfile(min((root / name / 'LIDAR_TOP').iterdir()),
                             np.float32) for name in ('samples', 'sweeps')]
    points = [torch.from_numpy(scan).view(-1, 5) for scan in scans]
    return [p[(p[:, :2].abs() < 51.2).all(1)] for p in points]


def pillar_of_points(side: float = 0.2) -> tuple[Tensor, int]:
    """The pillar of each point, and their number."""
    cells = torch.cat([
        F.pad((p[:, :2] / side).floor().long(), (1, 0), value=sample)
        for sample, p in enumerate(lidar_points())])
    unique, index = cells.unique(dim=0, return_inverse=True)
    return index, len(unique)


@lru_cache
def pillar_model() -> Any:
    """The stock full-size pillar model's config."""
    import mmdet3d.models  # noqa: F401
    from mmengine.hub import get_config
    return get_config(PILLAR_CONFIG).model


# Cases -------------------------------------------------------------------


def sigmoid_case(dtype: torch.dtype, device: torch.device) -> Work:
    x = heatmap_logits((4, NUM_CLASSES, *MAP), device, dtype)
    size = bytes_of(x)
    return Work(
        [
            Form(MMDET3D, stock_forms.clip_sigmoid),
            compiled(stock_forms.clip_sigmoid),
            *ours(clip_sigmoid),
            Form('torch.sigmoid', torch.sigmoid, 'sigmoid'),
        ],
        (x, ),
        moved=(2 * size, 3 * size),
        # The last value below 1 is far from it in bfloat16.
        tolerance=2e-2 if dtype == torch.bfloat16 else 1e-4)


def loss_case(side: int, device: torch.device,
              with_exact: bool = True) -> Work:
    shape = (4, NUM_CLASSES, side, side)
    x, t = heatmap_logits(shape, device), target_maps(shape, device)
    peaks = t.eq(1).sum().float()

    def stock(x: Tensor, t: Tensor) -> Tensor:
        loss = stock_forms.gaussian_focal_loss(stock_forms.clip_sigmoid(x), t)
        return loss.sum() / (peaks + torch.finfo(torch.float32).eps)

    def loss(clip: float | None) -> Callable[..., Tensor]:
        return partial(
            gaussian_focal_loss_with_logits, clip=clip, avg_factor=peaks)

    exact = ours(loss(None), 'exact', ', clip=None') if with_exact else []
    return Work([Form(MMDET, stock), compiled(stock), *ours(loss(EPS)),
                 *exact], (x, t),
                moved=(bytes_of(x, t), bytes_of(x, t, x)))


def gem_case(shape: tuple[int, ...], p: float | None,
             device: torch.device, scaled: bool = True) -> Work:
    """Global pooling; ``p`` None is a trained one that starts at 3."""
    x = features(shape, device)
    p = power(3.0, device) if p is None else p
    pooled = bytes_of(x[..., :1, :1])
    forms = [Form(MMPRETRAIN, stock_forms.gem)]
    if scaled:
        forms.append(compiled(stock_forms.gem))
        forms.append(
            peer('mmpretrain', 'mmpretrain.models.necks.gem', 'mmpretrain',
                 lambda module: partial(module.gem, clamp=True),
                 stock_forms.import_alone))
    forms += ours(gem_pool)
    if scaled:
        forms.append(Form('adaptive_avg_pool2d',
                          lambda x, p: F.adaptive_avg_pool2d(x, 1), 'mean',
                          leaves=(x, )))
    return Work(forms, (x, p), tolerance=2e-3,
                moved=(bytes_of(x) + pooled, 2 * bytes_of(x) + 2 * pooled))


def window_case(kernel: int, stride: int, device: torch.device) -> Work:
    x, p = features((4, 64, *MAP), device), 3.0
    rescale = kernel**(-2 / p)

    def stock(x: Tensor) -> Tensor:
        return stock_forms.gem(x, p, GEM_EPS, kernel, stride)

    def lp_pool(x: Tensor) -> Tensor:
        # The sum of the powers, where ours takes their mean.
        return F.lp_pool2d(x, p, kernel, stride) * rescale

    pooled = bytes_of(F.max_pool2d(x.detach(), kernel, stride))
    return Work([
        Form(TEXTBOOK, stock),
        compiled(stock),
        Form('torch lp_pool2d', lp_pool),
        *ours(partial(gem_pool, p=p, kernel_size=kernel, stride=stride)),
        Form('torch avg_pool2d', partial(
            F.avg_pool2d, kernel_size=kernel, stride=stride), 'mean'),
        Form('torch max_pool2d', partial(
            F.max_pool2d, kernel_size=kernel, stride=stride), 'max'),
    ], (x, ), moved=(bytes_of(x) + pooled, 2 * bytes_of(x) + 2 * pooled))


def segment_case(device: torch.device) -> Work:
    index, num = pillar_of_points()
    index = index.to(device)
    x, p = features((len(index), 64), device), power(3.0, device)

    def stock(x: Tensor, p: Tensor) -> Tensor:
        return stock_forms.power_mean_aggregation(x, index, num, p)

    def mine(x: Tensor, p: Tensor, **kwargs: Any) -> Tensor:
        return segment_generalized_mean(x, index, num, p, **kwargs)

    def amax(x: Tensor, p: Tensor) -> Tensor:
        return x.new_zeros(num, x.shape[1]).scatter_reduce(
            0, index[:, None].expand_as(x), x, 'amax')

    def pyg(module: Any) -> Callable[..., Tensor]:
        layer = module.PowerMeanAggregation(p=3.0, learn=True)
        # The parameter is that of the case, which gets the gradient.
        del layer.p

        def call(x: Tensor, p: Tensor) -> Tensor:
            layer.p = p
            return layer(x, index, dim_size=num)

        return call

    pooled = num * 64 * 4
    return Work([
        Form(PYG, stock),
        compiled(stock),
        peer('PyG PowerMeanAggregation', 'torch_geometric.nn.aggr',
             'torch_geometric', pyg),
        *ours(mine),
        Form('torch scatter_reduce amax', amax, 'max', leaves=(x, )),
    ], (x, p), tolerance=2e-3,
                moved=(bytes_of(x, index) + pooled,
                       2 * bytes_of(x) + bytes_of(index) + 2 * pooled))


def pillar_case(device: torch.device) -> Work:
    """Both whole pillar nets on the pillars of two scans."""
    from mmcv.ops import Voxelization
    from mmdet3d.models.voxel_encoders import PillarFeatureNet

    from sigplug.models.voxel_encoders import GeMPillarFeatureNet
    cfg = pillar_model()
    layer = cfg.data_preprocessor.voxel_layer
    voxelise = Voxelization(
        layer.voxel_size, cfg.pts_voxel_encoder.point_cloud_range,
        layer.max_num_points, layer.max_voxels[0]).train()
    parts = [voxelise(points.to(device)) for points in lidar_points()]
    voxels = torch.cat([part[0] for part in parts])
    coors = torch.cat([F.pad(part[1], (1, 0), value=sample)
                       for sample, part in enumerate(parts)])
    counts = torch.cat([part[2] for part in parts])
    arguments = dict(cfg.pts_voxel_encoder)
    del arguments['type']
    torch.manual_seed(0)
    stock = PillarFeatureNet(**arguments).to(device)
    mine = GeMPillarFeatureNet(**arguments, p=3.0).to(device)
    mine.load_state_dict(stock.state_dict(), strict=False)

    def run(net: torch.nn.Module) -> Callable[..., Tensor]:
        # The nets write into what they are given.
        return lambda *args: net(args[0].clone(), *args[1:]).flatten(1)

    leaves = tuple(mine.parameters())
    forms = [Form(form.name, form.call, leaves=leaves)
             for form in ours(run(mine))]
    return Work([
        Form(MMDET3D + ', maximum', run(stock), 'max',
             leaves=tuple(stock.parameters())), *forms
    ], (voxels, counts, coors))


def targets_case(num_boxes: int, device: torch.device) -> Work:
    """Targets of four samples by both heads."""
    from mmdet3d.models.dense_heads import CenterHead as StockHead
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.registry import DefaultScope
    from mmengine.structures import InstanceData

    from sigplug.models.dense_heads import CenterHead
    cfg = pillar_model()
    arguments = dict(cfg.pts_bbox_head, train_cfg=cfg.train_cfg.pts,
                     test_cfg=cfg.test_cfg.pts)
    del arguments['type']
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        heads = [kind(**arguments) for kind in (StockHead, CenterHead)]
    seeded = generator()
    samples = []
    for _ in range(4):
        boxes = torch.rand(num_boxes, 9, generator=seeded)
        boxes[:, :2] = 100 * boxes[:, :2] - 50
        boxes[:, 2] -= 2
        boxes[:, 3:6] = 0.4 + boxes[:, 3:6] * boxes.new_tensor([8, 2.5, 3])
        samples.append(InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes.to(device), box_dim=9),
            labels_3d=torch.randint(
                NUM_CLASSES, (num_boxes, ), generator=seeded).to(device)))
    stock, mine = (head.get_targets for head in heads)
    maps = 4 * NUM_CLASSES * MAP[0] * MAP[1] * 4
    return Work([Form(MMDET3D, stock), *ours(mine)], (samples, ),
                moved=(maps, 0))


def heatmap_case(count: int, device: torch.device) -> Work:
    centers, radii, labels = (t.to(device) for t in objects(count, MAP))

    def draw(module: Any) -> Callable[..., Tensor]:
        def loop(centers: Tensor, radii: Tensor, labels: Tensor) -> Tensor:
            maps = torch.zeros(NUM_CLASSES, *MAP, device=device)
            for center, radius, label in zip(centers, radii.tolist(),
                                             labels.tolist()):
                module.draw_heatmap_gaussian(maps[label], center, radius)
            return maps
        return loop

    return Work([
        peer('mmdet3d loop', 'mmdet3d.models.utils', 'mmdet3d', draw),
        *ours(partial(gaussian_heatmap, num_classes=NUM_CLASSES, size=MAP)),
    ], (centers, radii, labels), moved=(4 * NUM_CLASSES * MAP[0] * MAP[1], 0))


LOSS = 'loss, clip=1e-4, (4, 10, {0}, {0})'
GEM = 'GeM, trained p, {}'
TARGETS = 'targets, 4 samples x {} boxes, six tasks'
WINDOWS = 'gem_pool, p=3, (4, 64, 128, 128), windows of {} by {}'
SEGMENTS = 'GeM over the points of a pillar, 64 channels, trained p'
NETS = 'pillar feature net, training'
LARGE, SMALL = (4, 256, *MAP), (8, 512, 16, 16)
CASES = (
    Case('clip_sigmoid, fp32, (4, 10, 128, 128)',
         partial(sigmoid_case, torch.float32)),
    Case('clip_sigmoid, bf16, (4, 10, 128, 128)',
         partial(sigmoid_case, torch.bfloat16), quick=False),
    Case(LOSS.format(128), partial(loss_case, 128)),
    Case(LOSS.format(180), partial(loss_case, 180), quick=False),
    Case(GEM.format(LARGE), partial(gem_case, LARGE, None)),
    Case(GEM.format(SMALL), partial(gem_case, SMALL, None), quick=False),
    *(Case(WINDOWS.format(kernel, stride),
           partial(window_case, kernel, stride), quick=False)
      for kernel, stride in ((2, 2), (3, 2))),
    Case(SEGMENTS, segment_case),
    Case(NETS, pillar_case),
    *(Case(TARGETS.format(count), partial(targets_case, count))
      for count in (400, 30)),
    *(Case(f'curve of the loss, side {side}',
           partial(loss_case, side, with_exact=False), side in (64, 256),
           'loss', side) for side in (32, 64, 128, 256, 512)),
    *(Case(f'curve of gaussian_heatmap, {count} boxes',
           partial(heatmap_case, count), count in (10, 1000), 'boxes', count)
      for count in (1, 10, 100, 1000, 5000)),
    *(Case(f'curve of GeM, p {p or "trained"}',
           partial(gem_case, (4, 256, 64, 64), p, scaled=False),
           p in (2.0, 4.3), 'p', p or 'trained')
      for p in (1.0, 2.0, 3.0, 4.3, 6.5, 20.0, None)),
)
HEADLINES = (
    *(Headline(LOSS.format(side), OURS, against, at_least=goal)
      for side in (128, 180) for against, goal in ((MMDET, 8.0),
                                                   (COMPILED, 1.5))),
    *(Headline(LOSS.format(side), OURS + ', clip=None', OURS, at_least=1.0)
      for side in (128, 180)),
    Headline(GEM.format(LARGE), OURS, MMPRETRAIN, at_least=5.0),
    Headline(GEM.format(LARGE), OURS, 'adaptive_avg_pool2d', at_most=2.2),
    Headline(GEM.format(SMALL), OURS, MMPRETRAIN, at_least=3.5),
    *(Headline(WINDOWS.format(*window), OURS, TEXTBOOK)
      for window in ((2, 2), (3, 2))),
    Headline(TARGETS.format(400), OURS, MMDET3D, at_least=20.0),
    Headline(TARGETS.format(30), OURS, MMDET3D, at_least=5.0),
    Headline(SEGMENTS, OURS, PYG),
    Headline(SEGMENTS, OURS, 'torch scatter_reduce amax'),
    Headline(NETS, OURS, MMDET3D + ', maximum'),
)


# Running -----------------------------------------------------------------


def run_cases(args: argparse.Namespace) -> Iterator[tuple[
        Case, Work, list[Result]]]:
    """Measure the cases one after the other."""
    bar = tqdm(total=len(args.cases) * args.repeat, unit='rep')
    with bar:
        for case in args.cases:
            bar.set_description(case.name[:40])
            try:
                work = case.build(args.device)
            except ImportError as error:
                tqdm.write(f'{case.name}: left out, {error}')
                continue
            yield case, work, measure(work, args.repeat, args.device,
                                      bar.update)


def rows_of(case: Case, work: Work, results: list[Result],
            bandwidth: float) -> Iterator[dict[str, Any]]:
    """The rows of the results: one per form and pass."""
    stock = results[0].seconds
    for result in results:
        for name in result.seconds or ('forward', ):
            times = result.seconds.get(name)
            low, median, high = quartiles(times) if times else [None] * 3
            base = quartiles(stock[name])[1] if name in stock else None
            moved = dict(zip(('forward', 'backward'), work.moved),
                         both=sum(work.moved))[name]
            yield dict(
                case=case.name,
                curve=case.curve,
                x=case.x,
                form=result.name,
                same_function=result.same_function,
                status=result.status,
                **{'pass': name},
                median_s=median,
                q1_s=low,
                q3_s=high,
                calls=result.calls,
                ratio=base / median if median and base else None,
                bytes_moved=moved or None,
                share_of_limit=(moved / bandwidth / median
                                if median and moved else None),
                extra_bytes=result.extra_bytes if times else None,
                first_call_s=result.first_call_s)


def headlines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios that the operations are meant to reach, as measured."""
    found = {}
    for row in rows:
        # Both passes come last.
        found[row['case'], row['form']] = row['median_s']
    lines = []
    for line in HEADLINES:
        mine = found.get((line.case, line.form))
        other = found.get((line.case, line.against))
        if mine is None or other is None:
            continue
        goal = '-'
        ratio = other / mine
        against = f'times as fast as {line.against}'
        if line.at_least is not None:
            goal = f'{line.at_least:g} or more'
        if line.at_most is not None:
            goal, ratio = f'{line.at_most:g} or less', mine / other
            against = f'times the cost of {line.against}'
        lines.append(dict(what=f'{line.case}: {line.form}', against=against,
                          ratio=ratio, goal=goal))
    return lines


def first_calls_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """First calls of ours and of torch.compile, in this process."""
    rows = [row for row in rows if row['form'] in (OURS, COMPILED)
            and row['curve'] is None and row['median_s'] is not None]
    last = {(row['case'], row['form']): row for row in rows}
    return [{key: row[key] for key in ('case', 'form', 'first_call_s',
                                       'median_s')} for row in last.values()]


def time_compilation(device: torch.device) -> list[dict[str, Any]]:
    """First calls of ours where the kernels are compiled, and found compiled.

    Each in a process of its own, with caches that start empty.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = dict(os.environ, SIGPLUG_CACHE=cache,
                           TRITON_CACHE_DIR=cache, SIGPLUG_BACKEND='auto')
        rows = []
        for case in ('new process, kernels not compiled yet',
                     'new process, kernels compiled before'):
            done = subprocess.run(
                [sys.executable, '-c', FIRST_CALL, str(device)],
                env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f'error: {case}: {done.stderr.strip()}')
            rows.append(dict(case=f'loss, {case}', form=OURS,
                             first_call_s=float(done.stdout), median_s=None))
    return rows


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that was asked for."""
    # First of all, as this compiles the kernels if need be.
    about = describe(args, 'torch_geometric', 'mmpretrain')
    bandwidth = copy_bandwidth(args.device, args.repeat)
    rows = []
    for case, work, results in run_cases(args):
        new = list(rows_of(case, work, results, bandwidth))
        for row in new:
            if row['status'] != 'ok':
                tqdm.write(f'{case.name}: {row["form"]}: {row["status"]}')
        rows += new
    if not rows:
        raise SystemExit('error: none of the cases can run without mmdet3d: '
                         'make env')
    return dict(
        about,
        copy_bytes_per_s=bandwidth,
        rows=rows,
        headlines=headlines_of(rows),
        first_calls=first_calls_of(rows) +
        ([] if args.quick else time_compilation(args.device)))


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as cache:
        # First calls compile, whatever earlier runs have left.
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
        measured = run(args)
    texts = report_performance.ops_texts(measured)
    print('\n\n'.join(texts.values()))
    paths = report_performance.write_results(measured, texts, args.out,
                                             report_performance.OPS)
    if args.page:
        paths += report_performance.write_page(args.out)
    for path in paths:
        print(path)


if __name__ == '__main__':
    main()
