"""Start TensorBoard on a work dir that sigplug.LiveLookHook fills.

This is `tensorboard --logdir WORK_DIR` with all images, and without the
plug-ins that other packages bring: that of open3d, which comes with mmdet3d,
keeps TensorBoard from starting where a system library is missing. Options of
TensorBoard, such as --port 6007, follow the work dir and are passed on.
"""
import argparse
import sys

from sigplug.cli import process
from sigplug.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(
        usage='%(prog)s [-h] WORK_DIR [options of TensorBoard]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'work_dir', help='work dir of a training, or a folder of several')
    parser.add_argument(
        'options', nargs=argparse.REMAINDER, help='of TensorBoard')
    args = parser.parse_args()
    try:
        from tensorboard import default, program
    except ImportError as error:
        raise UserError(f'{error}: pip install tensorboard') from error
    server = program.TensorBoard(plugins=default.get_static_plugins())
    server.configure(
        ['tensorboard', '--logdir', args.work_dir, '--samples_per_plugin',
         'images=100', *args.options])
    sys.exit(server.main() or 0)


if __name__ == '__main__':
    sys.exit(process.run_tool(main))
