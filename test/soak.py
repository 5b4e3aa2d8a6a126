# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs real nodes under random faults for a long time; fails where one grows, loses count or stays down.

Two segmentation nodes, for raw and compressed images, a camera node and a listener are processes of their
own. Every few seconds one of `Soak.FAULTS` happens to them; then a good frame must get its label. The same
seed gives the same faults. `make soak MINUTES=40 SEED=0`
"""
import argparse
from collections import Counter
from contextlib import suppress
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import tempfile
import time

import cv2
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from tqdm import tqdm

from lightseg_ros import images
from lightseg_ros.live.probe import isolate, NodeProcess, Probe
from lightseg_ros.machine import resident_mb

SIZES = ((160, 120), (320, 180), (120, 240), (640, 480))
NETWORKS = ('laanet', 'affnet')
RESOLUTIONS = ('128x96', '160x96')
DOWN_S = 300.0  # a node that has not recovered after this time stays down
# Between the second and the last quarter of a run, as medians.
MAX_GROWTH = {'memory (MB)': 40, 'descriptors': 4, 'threads': 3, 'segments': 4}
VALUES = {  # valid ones, and one that is refused
    'max_rate': (0, 5.0, -1.0), 'rotation': (0, '180', 45), 'roi': ('', '80x60+0+0', 'all'),
    'overlay_alpha': (0.3, 1, 7.0), 'confidence_threshold': (0.0, 0.5, 2), 'lazy': ('true', False, 'maybe'),
    'label_groups': ('', 'traversable', 'nothing'), 'value_range': ('full', 'auto', '9:1'),
    'enabled': (True, 'perhaps'), 'mask': ('', '/none.png'), 'model': ('laanet', 'segnet')}
GOOD = {'max_rate': 0.0, 'rotation': '0', 'roi': '', 'lazy': 'true', 'enabled': True,
        'confidence_threshold': 0.0}


def frame(size, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)


class Target:
    """A segmentation node and the probe that plays frames to it."""

    def __init__(self, name, folder, transport):
        topic = {'raw': f'/{name}/image', 'compressed': f'/{name}/image/compressed'}[transport]
        self.name, self.kind = name, Image if transport == 'raw' else CompressedImage
        self.process = NodeProcess('segmentation', folder / f'{name}.log', {
            'resolution': RESOLUTIONS[0], 'image_transport': transport, 'threads': 1, 'publish_points': True,
            'image_size': '160x120'}, {'__node': name, 'image': f'/{name}/image',
                                       'image/compressed': f'/{name}/image/compressed'})
        self.labelled = set()
        self.probe = Probe(lambda seen: self.labelled.add(seen.stamp_ns), segmentation=f'/{name}',
                           image_topic=topic, plays=self.kind)
        self.set_parameters = self.probe.create_client(SetParameters, f'/{name}/set_parameters')
        self.change_state = self.probe.create_client(ChangeState, f'/{name}/change_state')
        self.counted, self.earlier, self.compared = Counter(), Counter(), 0

    def send(self, size, stamp_ns=None, data=None):
        """Publish a frame; returns its stamp. `data`: what the message carries instead."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        header = Header(frame_id='camera')
        header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 10 ** 9)
        msg = images.encode(frame(size), 'rgb8' if self.kind is Image else 'jpeg', header, self.kind())
        if data is not None:
            del msg.data[:]
            msg.data.frombytes(data)
        self.probe._publisher.publish(msg)
        return stamp_ns

    def call(self, client, request):
        future = client.call_async(request)
        assert self.probe.wait(future.done, DOWN_S, self.process), f'{self.name} does not answer'
        return future.result()

    def set(self, **values):
        return self.call(self.set_parameters, SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]))

    def recover(self, size):
        """Play good frames until one has its label; returns the seconds that this took."""
        began = time.monotonic()
        self.labelled.clear()
        sent = set()
        while not sent & self.labelled:
            assert time.monotonic() - began < DOWN_S, f'{self.name} is down'
            sent.add(self.send(size))
            self.probe.wait(lambda: bool(sent & self.labelled), 0.3, self.process)
        return time.monotonic() - began

    def unaccounted(self):
        """Return how many of the received frames are neither processed, dropped nor failed."""
        counts = Counter({k: int(self.probe.diagnostics.values.get(k, 0))
                          for k in ('received', 'processed', 'dropped', 'failed')})
        total = self.earlier + counts
        if total['received'] < self.counted['received']:  # they begin anew when the node is configured again
            self.earlier = self.counted
        self.counted = self.earlier + counts
        self.compared += counts['received'] > 0
        return counts['received'] - counts['processed'] - counts['dropped'] - counts['failed']

    def sample(self):
        pid = self.process.process.pid
        segments = {line.split()[-1] for line in Path(f'/proc/{pid}/maps').read_text().splitlines()
                    if '/dev/shm/fastdds' in line or '/dev/shm/fastrtps' in line}
        return {'memory (MB)': resident_mb(pid), 'descriptors': len(os.listdir(f'/proc/{pid}/fd')),
                'threads': len(os.listdir(f'/proc/{pid}/task')), 'segments': len(segments)}


class Soak:
    FAULTS = ('camera_dies', 'camera_returns', 'camera_stops', 'clock_jumps', 'listener_dies', 'storm',
              'swap', 'cycle', 'reload', 'freeze', 'garbage')

    def __init__(self, folder, seed):
        self.folder, self.random = folder, random.Random(seed)
        (folder / 'pictures').mkdir()
        for i in range(5):
            cv2.imwrite(str(folder / 'pictures' / f'{i}.png'), frame((640, 480), i))
        self.camera = self.listener = None
        self.targets = [Target('raw', folder, 'raw'), Target('packed', folder, 'compressed')]
        self.raw, self.packed = self.targets
        self.recovery, self.samples, self.events = {}, [], []

    def endless(self, seconds):
        """Yield random faults for a time."""
        began = time.monotonic()
        with tqdm(total=round(seconds), unit='s') as bar:
            while (passed := time.monotonic() - began) < seconds:
                bar.set_postfix(faults=len(self.events), refresh=False)
                bar.update(round(passed) - bar.n)
                yield self.random.choice(self.FAULTS)

    def run(self, faults):
        for target in self.targets:
            target.probe.wait_connected(DOWN_S, target.process)
            for size in SIZES:
                target.recover(size)
        began = time.monotonic()
        for fault in faults:
            target = self.random.choice(self.targets)
            self.events.append(fault)
            getattr(self, fault)(target)
            self.recovery.setdefault(fault, []).append(target.recover(self.random.choice(SIZES)))
            for target in self.targets:
                target.probe.wait(lambda: False, self.random.uniform(0.2, 1.5), target.process)
                off = target.unaccounted()
                assert 0 <= off <= 2, f'{target.name}: {off} frames are unaccounted for'  # two in flight
            self.samples.append((time.monotonic() - began, [t.sample() for t in self.targets]))
        self.kill(self.camera)
        for target in self.targets:  # nothing is in flight now
            assert target.probe.wait(lambda: not target.unaccounted(), 30, target.process), (  # noqa: B023
                f'{target.name}: received is not processed + dropped + failed')
            assert target.compared

    def kill(self, process, how=signal.SIGKILL):
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(how)
            process.wait(30)

    def camera_dies(self, target):
        self.kill(self.camera)

    def camera_stops(self, target):
        self.kill(self.camera, signal.SIGINT)

    def camera_returns(self, target):
        """Start the camera anew, with another size, encoding, rate and transport."""
        self.kill(self.camera, signal.SIGTERM)
        width, height = self.random.choice(SIZES)
        self.camera = NodeProcess('camera', self.folder / 'camera.log', {
            'source': str(self.folder / 'pictures'), 'width': width, 'height': height, 'loop': True,
            'rate': self.random.choice((5, 15, 40.0)), 'encoding': self.random.choice(('rgb8', 'bgr8')),
            'image_transport': 'raw' if target is self.raw else 'compressed'},
            {'image': f'/{target.name}/image',
             'image/compressed': f'/{target.name}/image/compressed'}).process

    def clock_jumps(self, target):
        for stamp_ns in (0, -5 * 10 ** 9, 10 ** 9, time.time_ns() + 3600 * 10 ** 9, 2 ** 30 * 10 ** 9):
            target.send(self.random.choice(SIZES), stamp_ns)
            target.probe.wait(lambda: False, 0.1, target.process)

    def listener_dies(self, target):
        """Kill who listens to the other outputs, and start another one."""
        self.kill(self.listener)
        self.listener = subprocess.Popen([sys.executable, __file__, '--listen', target.name])

    def storm(self, target):
        for _ in range(30):
            name = self.random.choice(list(VALUES))
            target.set(**{name: self.random.choice(VALUES[name])})
        assert all(result.successful for result in target.set(**GOOD).results)

    def swap(self, target):
        assert all(result.successful for result in target.set(
            model=self.random.choice(NETWORKS), resolution=self.random.choice(RESOLUTIONS)).results)

    def transitions(self, target, *ids):
        for number in ids:
            assert target.call(target.change_state, ChangeState.Request(
                transition=Transition(id=number))).success, f'{target.name}: transition {number}'

    def cycle(self, target):
        self.transitions(target, Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE)

    def reload(self, target):
        self.transitions(target, Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                         Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
        target.probe.diagnostics.values.clear()

    def freeze(self, target):
        target.process.process.send_signal(signal.SIGSTOP)
        target.probe.wait(lambda: False, self.random.uniform(0.5, 3))
        target.process.process.send_signal(signal.SIGCONT)

    def garbage(self, target):
        """Send damaged files, a picture that states 60000x60000 pixels, and rows that are too short."""
        good = cv2.imencode('.jpg', frame(SIZES[3]))[1].tobytes()
        bomb = bytearray(cv2.imencode('.png', frame(SIZES[0]))[1].tobytes())
        bomb[16:24] = 2 * (60000).to_bytes(4, 'big')
        for data in (good[:len(good) // 2], b'', bytes(bomb), self.random.randbytes(5000),
                     good[:300] + self.random.randbytes(300) + good[600:]):
            target.send(SIZES[3], data=data)
            target.probe.wait(lambda: False, 0.1, target.process)

    def close(self):
        self.kill(self.camera)
        self.kill(self.listener)
        codes = [target.process.stop() for target in self.targets]
        assert codes == [0, 0], f'exit codes {codes}'
        for target in self.targets:
            target.probe.destroy_node()
            assert 'Traceback' not in target.process.log.read_text(), f'{target.name}: a traceback in the log'

    def growth(self):
        """Return by how much each node grew from the second to the last quarter of the run, as medians."""
        count = len(self.samples)
        early, late = self.samples[count // 4:count // 2], self.samples[count * 3 // 4:]

        def median(samples, i, key):
            return float(np.median([sample[i][key] for _, sample in samples]))

        return {target.name: {key: median(late, i, key) - median(early, i, key) for key in MAX_GROWTH}
                for i, target in enumerate(self.targets)}

    def report(self):
        print(f'{len(self.events)} faults: ' + ', '.join(f'{n} {k}' for k, n in Counter(
            self.events).most_common()))
        print(f'{"fault":<16}{"label again after, p50":>24}{"max":>10}')
        for fault, seconds in sorted(self.recovery.items()):
            print(f'{fault:<16}{np.median(seconds):>22.2f} s{max(seconds):>8.2f} s')
        for target in self.targets:
            print(f'{target.name}: ' + ', '.join(f'{n} {k}' for k, n in target.counted.items()))

    def plot(self, path):
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
        _, axes = pyplot.subplots(len(MAX_GROWTH), 1, sharex=True, figsize=(9, 9))
        for axis, key in zip(axes, MAX_GROWTH):
            for i, target in enumerate(self.targets):
                axis.plot([t / 60 for t, _ in self.samples], [s[i][key] for _, s in self.samples],
                          label=f'{target.name} images')
            axis.set_ylabel(key)
            axis.set_ylim(0, 1.2 * max(s[i][key] for _, s in self.samples for i in range(len(s))))
        axes[0].legend(loc='lower right')
        axes[-1].set_xlabel('minutes')
        pyplot.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        pyplot.savefig(path, dpi=90)


def listen(name):
    rclpy.init()
    node = rclpy.create_node('listener')
    for output in ('label', 'overlay', 'confidence', 'label_color', 'groups'):
        node.create_subscription(Image, f'/{name}/{output}', lambda msg: None, 1)
    rclpy.spin(node)


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--plot', type=Path, help='PNG file')
    parser.add_argument('--listen', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.listen:
        return listen(args.listen)
    isolate()
    rclpy.init()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), args.seed)
        try:
            soak.run(soak.endless(60 * args.minutes))
        except BaseException:
            print('last faults:', soak.events[-5:])
            for target in soak.targets:
                print(f'{target.name} said: {target.process.last_words(10)}')
            raise
        finally:
            soak.report()
            if args.plot:
                soak.plot(args.plot)
            soak.close()
    for name, grown in soak.growth().items():
        print(f'{name} grew by ' + ', '.join(f'{v:+.0f} {k}' for k, v in grown.items()))
        if args.minutes >= 10:  # before, they still learn the sizes
            assert all(grown[key] <= most for key, most in MAX_GROWTH.items()), f'{name} grows'
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
