"""TensorBoard as the tool starts it; what it reads: test_live_look.py."""
from tensorboard import default
from tensorboard.program import TensorBoard


def test_all_images_and_the_plugins_of_tensorboard_alone(
        tmp_path, monkeypatch, run_here):
    servers = []
    monkeypatch.setattr(
        TensorBoard, 'main', lambda self: servers.append(self) or 3)
    code, _ = run_here(
        'analysis_tools/live_look.py', 'work', '--path_prefix', '/live',
        cwd=tmp_path)
    assert code == 3
    server, = servers
    assert server.flags.logdir == 'work'
    assert server.flags.path_prefix == '/live'
    # TensorBoard by itself shows ten.
    assert server.flags.samples_per_plugin == dict(images=100)
    # Another one, as that of open3d, may not be importable.
    own = TensorBoard(plugins=default.get_static_plugins()).plugin_loaders
    assert list(map(type, server.plugin_loaders)) == list(map(type, own))
