"""Make the files that a maintainer attaches to a release.

From the work dir of tools/quickstart.py: the weights of its checkpoint without
the state of the training, named after their SHA-256, and a JSON file with the
evaluation, the versions and that checksum.
"""
import argparse
import json
import sys
from pathlib import Path

import torch

from sigplug.cli import preflight, process
from sigplug.cli.results import write_json
from sigplug.deploy.folder import checksum
from sigplug.errors import UserError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dir', type=Path, help='of tools/quickstart.py, when it is done')
    parser.add_argument(
        '--out', type=Path, default=Path('release'), metavar='DIR',
        help='folder of the files (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        summary = json.loads((args.work_dir / 'summary.json').read_text())
        name = Path(summary['config']).stem
        source = args.work_dir / Path(summary['files']['checkpoint']).name
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{args.work_dir} has no results of '
                        f'tools/quickstart.py: {error}') from error
    checkpoint = preflight.check_checkpoint(str(source), 'work_dir')
    meta = checkpoint['meta']
    args.out.mkdir(parents=True, exist_ok=True)
    partial = args.out / f'{name}.pth'
    torch.save(dict(
        state_dict=checkpoint['state_dict'],
        meta={key: meta[key] for key in (
            'dataset_meta', 'epoch', 'iter', 'seed', 'mmengine_version')
            if key in meta}), partial)
    digest = checksum(partial)
    target = args.out / f'{name}-{digest[:8]}.pth'
    partial.rename(target)
    kept = ('config', 'seed', 'amp', 'data_seed', 'metrics', 'machine',
            'versions')
    write_json(target.with_suffix('.json'), dict(
        file=target.name, sha256=digest,
        **{key: summary[key] for key in kept}))
    print(f'{target}: {target.stat().st_size / 2**20:.1f} MiB, mAP '
          f'{summary["metrics"]["mAP"]:.4f}, NDS '
          f'{summary["metrics"]["NDS"]:.4f}\nSHA-256 {digest}')


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
