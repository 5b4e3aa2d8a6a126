# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node under a lifecycle manager, driven by the services that Nav2's manager calls."""
import signal
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from lifecycle_msgs.msg import State, Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from lightseg_ros import images  # noqa: E402
from lightseg_ros.live.probe import NodeProcess, nodes  # noqa: E402
from lightseg_ros.machine import resident_mb  # noqa: E402

FRAME = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


class Manager:
    """Does what Nav2's lifecycle manager does (change_state, get_state); also a camera and a listener."""

    def __init__(self, process, name):
        self.process, self.name = process, name
        self.node = rclpy.create_node('manager')
        self.clients = {}
        self.labels, self.status = [], []
        self.camera = self.node.create_publisher(Image, f'/{name}/image', QoSProfile(depth=1))
        self.label_subscription = self.node.create_subscription(
            Image, f'/{name}/label', self.labels.append, QoSProfile(depth=10))
        self.node.create_subscription(DiagnosticArray, '/diagnostics', lambda m: self.status.extend(
            s for s in m.status if s.name == f'{name}: frames'), 10)

    def spin(self, until, timeout_s=60.0):
        end = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end, self.process.log.read_text()
            self.process.check()
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def call(self, kind, service, **request):
        if service not in self.clients:
            self.clients[service] = self.node.create_client(kind, f'/{self.name}/{service}')
        client = self.clients[service]
        assert client.wait_for_service(60)
        future = client.call_async(kind.Request(**request))
        self.spin(future.done, 300)
        return future.result()

    def change(self, transition):
        return self.call(ChangeState, 'change_state', transition=Transition(id=transition)).success

    def state(self):
        return self.call(GetState, 'get_state').current_state.id

    def set_parameter(self, name, **value):
        return self.call(SetParameters, 'set_parameters', parameters=[
            Parameter(name=name, value=ParameterValue(**value))]).results[0]

    def play(self, count=10):
        """Publish frames; returns how many labels came back."""
        self.labels.clear()
        for _ in range(count):
            header = Header(stamp=self.node.get_clock().now().to_msg())
            self.camera.publish(images.encode(FRAME, 'rgb8', header, Image()))
            for _ in range(3):
                rclpy.spin_once(self.node, timeout_sec=0.03)
        return len(self.labels)

    def latest(self):
        """Diagnostics published after this call."""
        self.status.clear()
        self.spin(lambda: len(self.status) >= 2)
        return self.status[-1]


@pytest.fixture
def start(ros, random_weights, tmp_path):
    managers, processes = [], []

    def make(name, **parameters):
        parameters = {'weights': str(random_weights), 'resolution': '64x64', 'autostart': False,
                      'diagnostics_rate': 10.0, **parameters}
        process = NodeProcess('segmentation', tmp_path / 'node.log', parameters, {
            '__node': name, 'image': f'/{name}/image'})
        processes.append(process)
        managers.append(Manager(process, name))
        return managers[-1]

    with nodes():
        yield make
    for manager in managers:
        manager.node.destroy_node()
    for process in processes:
        assert process.stop() == 0
        assert 'Traceback' not in process.log.read_text()


def test_the_transitions_of_a_lifecycle_manager(start):
    m = start('managed')
    assert m.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert m.node.count_publishers('/managed/label') == 0
    empty_mb = resident_mb(m.process.process.pid)
    status = m.latest()
    assert status.level == b'\0' and status.message == 'unconfigured: no network is loaded'

    assert m.change(Transition.TRANSITION_CONFIGURE) and m.state() == State.PRIMARY_STATE_INACTIVE
    loaded_mb = resident_mb(m.process.process.pid)
    m.spin(lambda: m.node.count_publishers('/managed/label') == 1)
    assert m.camera.get_subscription_count() == 0 and m.play() == 0
    assert m.latest().message == 'inactive: the network is loaded'

    assert m.change(Transition.TRANSITION_ACTIVATE) and m.state() == State.PRIMARY_STATE_ACTIVE
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    assert m.play() > 5

    began = time.monotonic()
    assert m.change(Transition.TRANSITION_DEACTIVATE) and m.state() == State.PRIMARY_STATE_INACTIVE
    m.spin(lambda: m.camera.get_subscription_count() == 0)
    assert m.play() == 0
    assert m.change(Transition.TRANSITION_ACTIVATE)
    assert time.monotonic() - began < 10  # nothing was loaded again
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    assert m.play() > 5
    assert m.process.log.read_text().count('configured: laanet') == 1

    assert m.change(Transition.TRANSITION_DEACTIVATE) and m.change(Transition.TRANSITION_CLEANUP)
    assert m.state() == State.PRIMARY_STATE_UNCONFIGURED
    m.spin(lambda: m.node.count_publishers('/managed/label') == 0)
    freed_mb = loaded_mb - resident_mb(m.process.process.pid)
    print(f'unconfigured {empty_mb:.0f} MB, configured {loaded_mb:.0f} MB, cleanup freed {freed_mb:.0f} MB')
    assert freed_mb > 5
    # What is not possible from here is refused, and the node lives on.
    assert not m.change(Transition.TRANSITION_ACTIVATE)
    assert m.change(Transition.TRANSITION_CONFIGURE) and m.change(Transition.TRANSITION_ACTIVATE)
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    assert m.play() > 5
    assert m.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert m.state() == State.PRIMARY_STATE_FINALIZED


def test_what_cannot_be_configured_has_a_reason_and_can_be_mended(start, random_weights, tmp_path):
    m = start('broken', weights=str(tmp_path / 'none.safetensors'))
    assert not m.change(Transition.TRANSITION_CONFIGURE)
    assert m.state() == State.PRIMARY_STATE_UNCONFIGURED  # through ErrorProcessing
    status = m.latest()
    assert status.level == b'\2'
    assert 'unconfigured' in status.message and 'none.safetensors: no such file' in status.message
    assert 'cannot start: ' in m.process.log.read_text()
    assert m.set_parameter('weights', type=ParameterType.PARAMETER_STRING,
                           string_value=str(random_weights)).successful
    assert m.change(Transition.TRANSITION_CONFIGURE) and m.change(Transition.TRANSITION_ACTIVATE)
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    assert m.play() > 5 and m.latest().level == b'\0'


def loading(m):
    """Wait until the node is loading its first network, which is not in the cache on disk."""
    m.spin(lambda: any('loading' in s.message for s in m.status), 120)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.parametrize('autostart', [True, False])
def test_services_answer_while_the_first_network_is_loaded(start, cold, autostart):
    m = start('loads', autostart=autostart)
    change = None
    if not autostart:
        client = m.node.create_client(ChangeState, '/loads/change_state')
        assert client.wait_for_service(60)
        change = client.call_async(ChangeState.Request(
            transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    loading(m)
    assert m.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert m.status[-1].level == b'\0' and m.status[-1].message.startswith('unconfigured: loading ')
    assert not m.change(Transition.TRANSITION_CONFIGURE)  # it is under way
    log = m.process.log.read_text()
    assert 'cannot configure: ' in log and 'is being loaded' in log and 'configured: laanet' not in log
    # Parameters that are set meanwhile are those that count.
    assert m.set_parameter('resolution', type=ParameterType.PARAMETER_STRING, string_value='96x64').successful
    if change:
        m.spin(change.done, 120)
        assert change.result().success and m.change(Transition.TRANSITION_ACTIVATE)
    m.spin(lambda: m.camera.get_subscription_count() == 1, 120)
    assert m.play() > 5 and m.state() == State.PRIMARY_STATE_ACTIVE
    log = m.process.log.read_text()
    assert log.count('configured: laanet') == 1 and '96x64' in log.split('configured: laanet')[1]


def test_an_interrupt_while_the_first_network_is_loaded(start, cold):
    m = start('stopped', autostart=True)
    loading(m)
    assert 'configured: laanet' not in m.process.log.read_text()
    m.process.process.send_signal(signal.SIGINT)  # the fixture looks for exit code 0 and tracebacks
    m.process.process.wait(15)


def longest_answer_s(m, futures):
    """Send frames and ask for the state until the futures are done; returns how long the slowest took."""
    longest_s = sent_s = 0.0
    while not all(future.done() for future in futures):
        if time.monotonic() - sent_s > 0.1:
            m.camera.publish(images.encode(FRAME, 'rgb8', Header(), Image()))
            sent_s = time.monotonic()
        began = time.monotonic()
        assert m.state() == State.PRIMARY_STATE_ACTIVE or len(futures) == 1
        longest_s = max(longest_s, time.monotonic() - began)
    return longest_s


def test_networks_that_are_asked_for_at_once_come_one_after_the_other(start, cold, tmp_path):
    """The second one once loaded in the executor: no service answered and no label came for 17 s."""
    import torch

    from lightseg_ros import labels, networks, weights
    weights.save(tmp_path / 'a.safetensors', networks.build('affnet', 11), weights.Card(
        'affnet', labels.load('camvid'), (105.0,) * 3, (70.0,) * 3, (480, 360)))
    torch.manual_seed(0)
    m = start('overlaps', autostart=True)
    m.spin(lambda: m.camera.get_subscription_count() == 1, 120)
    m.play(3)
    client = m.node.create_client(SetParameters, '/overlaps/set_parameters')
    assert client.wait_for_service(60)
    began = time.monotonic()
    futures = [client.call_async(SetParameters.Request(parameters=[Parameter(
        name=name, value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value))]))
        for name, value in (('weights', str(tmp_path / 'a.safetensors')), ('resolution', '96x64'),
                            ('rotation', '90'))]
    longest_s = longest_answer_s(m, futures)
    took_s = time.monotonic() - began
    print(f'{took_s:.1f} s for all, the slowest answer of another service took {longest_s:.2f} s')
    assert all(future.result().results[0].successful for future in futures)
    assert longest_s < max(1.0, took_s / 10)
    assert m.play() > 5
    status = m.latest()
    assert 'affnet' in {v.value for v in status.values} and m.process.log.read_text().count('now affnet') == 2


def test_what_is_asked_for_while_a_new_size_is_compiled_holds_nothing_up(start, cold):
    """Deactivating, and other labels, wait for the frame; services answer meanwhile."""
    m = start('compiles', autostart=True, resolution='native', image_size='128x96')
    m.spin(lambda: m.camera.get_subscription_count() == 1, 120)
    for height in (112, 120):
        m.play(1)
        frame = np.ascontiguousarray(np.resize(FRAME, (height, 160, 3)))
        m.labels.clear()
        m.camera.publish(images.encode(frame, 'rgb8', Header(), Image()))
        m.spin(lambda words=f'preparing 160x{height}': any(words in s.message for s in m.status[-1:]))
        if height == 112:
            client = m.node.create_client(SetParameters, '/compiles/set_parameters')
            request = SetParameters.Request(parameters=[Parameter(
                name='confidence_threshold', value=ParameterValue(
                    type=ParameterType.PARAMETER_DOUBLE, double_value=0.1))])
        else:
            client = m.node.create_client(ChangeState, '/compiles/change_state')
            request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
        assert client.wait_for_service(60)
        began = time.monotonic()
        future = client.call_async(request)
        longest_s = longest_answer_s(m, [future])
        took_s = time.monotonic() - began
        print(f'answered after {took_s:.1f} s, the slowest answer of another service took {longest_s:.2f} s')
        assert took_s > 1 and longest_s < max(0.7, took_s / 2)
        m.spin(lambda rows=height: any(label.height == rows for label in m.labels))
    assert m.state() == State.PRIMARY_STATE_INACTIVE
    m.spin(lambda: m.camera.get_subscription_count() == 0)
    assert m.play() == 0


def test_200_cycles_do_not_grow(start):
    m = start('cycled')
    assert m.change(Transition.TRANSITION_CONFIGURE)

    def cycle(count):
        for _ in range(count):
            assert m.change(Transition.TRANSITION_ACTIVATE)
            m.play(1)
            assert m.change(Transition.TRANSITION_DEACTIVATE)
        return resident_mb(m.process.process.pid)

    before_mb = cycle(50)
    after_mb = cycle(150)
    print(f'{before_mb:.1f} MB after 50 cycles, {after_mb:.1f} MB after 200')
    assert after_mb - before_mb < 2


def test_enable_is_a_service_and_a_parameter(start):
    m = start('switch', autostart=True)
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    m.spin(lambda: m.play(3) > 0)
    answer = m.call(SetBool, 'enable', data=False)
    assert answer.success and answer.message == 'disabled'
    m.spin(lambda: m.camera.get_subscription_count() == 0)
    assert m.play() == 0
    assert "'enabled' is false" in m.latest().message
    assert m.call(SetBool, 'enable', data=True).message == 'enabled'
    m.spin(lambda: m.camera.get_subscription_count() == 1)
    assert m.play() > 5
    # Disabled and inactive are independent: activating does not enable.
    assert m.set_parameter('enabled', type=ParameterType.PARAMETER_BOOL, bool_value=False).successful
    assert m.change(Transition.TRANSITION_DEACTIVATE) and m.change(Transition.TRANSITION_ACTIVATE)
    assert m.play() == 0


def test_nodes_in_a_process_of_one_s_own(ros, random_weights):
    """Two nodes in a context and an executor with threads, as a user has them; a third cannot start."""
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.parameter import Parameter as RclpyParameter

    from lightseg_ros.nodes.segmentation import SegmentationNode
    context = rclpy.Context()
    rclpy.init(context=context)
    executor = MultiThreadedExecutor(2, context=context)

    def make(namespace, **parameters):
        parameters = {'weights': str(random_weights), 'resolution': '64x64', **parameters}
        return SegmentationNode(namespace=namespace, context=context, parameter_overrides=[
            RclpyParameter(name, value=value) for name, value in parameters.items()])

    segmentations = [make('own/left'), make('own/right')]
    with pytest.raises(ValueError, match="resolution is 'big'; expected WIDTHxHEIGHT"):
        make('own/broken', resolution='big')
    user = rclpy.create_node('user', context=context)
    labels = {'left': [], 'right': []}
    cameras = []
    for side, got in labels.items():
        user.create_subscription(Image, f'/own/{side}/segmentation/label', got.append, 10)
        cameras.append(user.create_publisher(Image, f'/own/{side}/image', 1))
    for node in (*segmentations, user):
        executor.add_node(node)
    end = time.monotonic() + 60
    while not all(labels.values()):
        assert time.monotonic() < end, {side: len(got) for side, got in labels.items()}
        for camera, side in zip(cameras, labels):
            camera.publish(images.encode(FRAME, 'rgb8', Header(frame_id=side), Image()))
        for _ in range(5):
            executor.spin_once(timeout_sec=0.05)
    assert all(msg.header.frame_id == side for side, got in labels.items() for msg in got)
    executor.shutdown()
    for node in (*segmentations, user):
        node.destroy_node()
    rclpy.shutdown(context=context)
