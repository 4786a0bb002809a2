"""Join mmcv's sources into few files.

Each file alone takes the compiler ten seconds, nine of them for torch's
headers. mmcv's ``setup.py`` compiles the files that it finds in three folders.
"""

# The templates that bezier_align.cpp, roi_align.cpp and others each define.
CLASHES = 'PreCalc', 'add', 'bilinear_interpolate_gradient'
CUDA_CLASHES = ('threadsPerBlock', 'divideUP', 'BLOCK_DIM_X', 'BLOCK_DIM_Y',
                'lidar_to_local_coords', 'check_pt_in_box3d')
# Names that others may need: of one file each.
CUDA_CLASHES_OF = dict(iou3d_cuda=('Point', ),
                       voxelization_cuda=('SUM', 'MEAN', 'MAX', 'reduce_t'))
# CUDA files that are known to go together; the others stay alone.
CUDA_UNITS = dict(
    boxes='nms nms_rotated nms_quadri bbox_overlaps iou3d box_iou_rotated '
    'box_iou_quadri',
    points='voxelization scatter_points points_in_boxes ball_query '
    'stack_ball_query group_points stack_group_points gather_points '
    'furthest_point_sample three_nn three_interpolate knn roipoint_pool3d '
    'roiaware_pool3d',
    images='focal_loss roi_align roi_align_rotated sync_bn deform_conv '
    'modulated_deform_conv diff_iou_rotated',
    sparse='spconv_ops sparse_pool_ops fused_spconv_ops')


def join_sources(folder):
    """Join the sources in mmcv's folder ``csrc/pytorch``."""
    for part in (folder, folder / 'cpu'):
        write_unit(
            part / 'unit.cpp', sorted(part.glob('*.cpp')),
            ['pytorch_cpp_helper.hpp', 'pytorch_device_registry.hpp'],
            lambda path: CLASHES if CLASHES[-1] in path.read_text() else ())
    for name, files in CUDA_UNITS.items():
        paths = (folder / f'cuda/{file}_cuda.cu' for file in files.split())
        write_unit(
            folder / f'cuda/{name}.cu',
            [path for path in paths if path.is_file()],
            ['torch/script.h'] + ['pytorch_cuda_helper.hpp'] * (
                name != 'sparse'),
            lambda path: CUDA_CLASHES + CUDA_CLASHES_OF.get(path.stem, ()))


def write_unit(unit, paths, headers, find_clashes):
    """Write a file that includes others, each with its clashing names changed.

    The headers come first, where no name is changed.
    """
    lines = [f'#include "{name}"' for name in headers]
    for path in paths:
        names = find_clashes(path)
        path.rename(path.with_suffix('.inc'))
        lines += [f'#define {name} {name}_{path.stem}' for name in names]
        lines.append(f'#include "{path.stem}.inc"')
        # psamask.cpp leaves min and max behind.
        lines += [f'#undef {name}' for name in (*names, 'min', 'max')]
    if paths:
        unit.write_text('\n'.join([*lines, '']))
