# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: camera images in; label, overlay, confidence, points and diagnostics out."""
if __name__ == '__main__':  # before the imports, so that Ctrl-C while they run ends the node quietly
    from . import segmentation_node
    raise SystemExit(segmentation_node())
from collections.abc import Callable
from contextlib import nullcontext, suppress
import ctypes
from dataclasses import replace
from functools import partial
import gc
from time import monotonic, sleep
from typing import Any, cast

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import State, Transition
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool

from ..health import ERROR, OK, Status, WARN, without_stale
from ..texts import error_line, one_line
from .announcements import Announcements
from .frames import FrameWorker
from .lifetime import run
from .live_segmenter import LiveSegmenter
from .outputs import CameraOutputs, MATCHED_EVENTS
from .parameters import declare, usage, warn_of_unused_qos_overrides, watch
from .plan import Plan
from .responsive import ResponsiveNode
from .segmentation_parameters import SegmentationParameters

INPUTS = {'raw': (Image, 'image'), 'compressed': (CompressedImage, 'image/compressed')}


class SegmentationNode(ResponsiveNode):
    """
    Subscribes to `image` (or `image/compressed`), publishes `~/label`, `~/overlay` and `~/confidence`.

    With `depth` and `camera_info` it also publishes `~/points`. The executor only hands images to a
    `FrameWorker`. Parameters exchange the network while the node runs; a network that cannot be loaded is
    refused with the reason, and the old one stays in force.

    Lifecycle: configure loads and warms up the network, activate subscribes to the images, deactivate
    unsubscribes and keeps the network, cleanup frees it. With the parameter `autostart` the constructor does
    the first two steps, and raises the error that prevents them (a ValueError). Without it, a lifecycle
    manager does; a step that fails leaves the node unconfigured, with the reason in the log and in the
    diagnostics. With `start_in_executor` the constructor returns at once, and the first executor that spins
    the node starts it while services are answered and diagnostics published; `check` then raises the error.
    The keyword arguments of rclpy's Node, such as `namespace`, `context` and `parameter_overrides`, are
    passed on.
    """

    def __init__(self, name: str = 'segmentation', *, start_in_executor: bool = False,
                 **options: Any) -> None:
        # First: at the shutdown, rclpy calls destroy_node even if the constructor has failed.
        self._live: LiveSegmenter | None = None
        self._worker: FrameWorker | None = None
        self._cameras: list[CameraOutputs] = []
        self._announcements: Announcements | None = None
        self._active = False
        self._error: Exception | None = None
        self._configuring = False  # whether a thread is loading the first network
        # What a thread has loaded for on_configure, or why it could not, and the parameters of then.
        self._loaded: tuple[SegmentationParameters, LiveSegmenter | Exception] | None = None
        self._start_failed = False
        super().__init__(name, **options)
        self._settings = p = declare(self, SegmentationParameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock: with use_sim_time and a paused bag the diagnostics must go on.
        self.create_timer(1 / p.diagnostics_rate, self._publish_diagnostics,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(SetBool, '~/enable', self._on_enable, callback_group=ReentrantCallbackGroup())
        self._preview = watch(self, p, self._apply)
        self._answer_while_loading()
        if not MATCHED_EVENTS:
            self.create_timer(0.2, self._update_subscriptions, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if p.autostart and start_in_executor:
            self._starter = self.create_timer(
                0.0, cast(Any, self._start_beside), clock=Clock(clock_type=ClockType.STEADY_TIME),
                callback_group=ReentrantCallbackGroup())
        elif p.autostart and not self._start():
            self.destroy_node()
            assert self._error is not None
            raise self._error

    def check(self) -> None:
        """Raise the error that prevented the start in an executor."""
        if self._start_failed and self._error:
            raise self._error

    def destroy_node(self) -> None:
        """
        Let the worker finish its frame, then destroy publishers and subscriptions.

        A thread that is compiling a network cannot be stopped; what it makes is thrown away.
        """
        self._free()
        super().destroy_node()

    # ------------------------------------------------------------------------------------------- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the network, and create the publishers."""
        p = self._settings
        try:
            self._live = self._take_loaded() or _load(p)
            plan = Plan.make(p, self._live.segmenter.labels)
            self._worker = FrameWorker(self, self._live, plan)
            self._cameras = [CameraOutputs(self, name, p, self._update_subscriptions)
                             for name in p.camera_names()]
            self._announcements = Announcements(self)
            self._announcements.publish(plan)
            self._worker.start()
        except Exception as e:  # rclpy would discard it
            self._error = e
            return TransitionCallbackReturn.ERROR
        self._error = None
        self.get_logger().info(f'configured: {self._live.segmenter.describe()}')
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images."""
        self._active = True
        try:
            self._update_subscriptions()
        except Exception as e:  # such as QoS that the middleware refuses; rclpy would discard it
            self._error = e
            return TransitionCallbackReturn.ERROR
        topics = ', '.join(topic for camera in self._cameras for topic in camera.topics())
        warn_of_unused_qos_overrides(self)
        self.get_logger().info(f'active; waiting for {topics or "a subscriber"}')
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe from the images and keep the network; no label is published afterwards."""
        self._active = False
        self._update_subscriptions()
        self.get_logger().info('inactive; the network stays loaded')
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network and destroy the publishers."""
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Log the reason and return to unconfigured, from where the node can be configured again."""
        self._free()
        self.get_logger().error(f'cannot start: {one_line(self._error)}')
        return TransitionCallbackReturn.SUCCESS

    def _start(self) -> bool:
        """Configure and activate; returns whether that succeeded."""
        return (self.trigger_configure() == TransitionCallbackReturn.SUCCESS
                and self.trigger_activate() == TransitionCallbackReturn.SUCCESS)

    async def _start_beside(self) -> None:
        """Do `_start` in the executor, which goes on while a thread loads the network."""
        self._starter.cancel()
        await self._load_first()
        self._start_failed = not self._start()

    async def _load_first(self) -> None:
        """Load the network of the parameters in a thread; errors are raised by on_configure."""
        self._loaded, self._configuring = None, True
        while not self._loaded or self._loaded[0] != self._settings:  # they may be set meanwhile
            p = self._settings

            def load(p: SegmentationParameters = p) -> None:
                try:
                    self._loaded = p, _load(p)
                except Exception as e:
                    self._loaded = p, e

            self.get_logger().info(f'loading {one_line(p.network().model)}')
            await self._in_thread(load, p.network().model)
        self._configuring = False

    def _take_loaded(self) -> LiveSegmenter | None:
        """Return what `_load_first` has loaded, if it is what the parameters ask for, or raise its error."""
        loaded, self._loaded = self._loaded, None
        if loaded is None or loaded[0] != self._settings:
            return None
        if isinstance(loaded[1], Exception):
            raise loaded[1]
        return loaded[1]

    async def _change_state(self, answer: Callable, request: Any, response: Any) -> Any:
        """Load the network, or wait for frames, before the transition, during which nothing is answered."""
        wanted = request.transition
        if wanted.label == 'configure' or wanted.id == Transition.TRANSITION_CONFIGURE:
            if self._configuring:
                self.get_logger().error(f'cannot configure: {one_line(self._loading)} is being loaded')
                response.success = False
                return response
            async with self._turns.next(self.executor):  # a change that a cleanup has cut short may still end
                if self._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED:
                    await self._load_first()
                return self._finish_change(answer, request, response)
        if self._worker and self._active:
            self._worker.stop_soon()
            await self._frames_end()
        return self._finish_change(answer, request, response)

    def _finish_change(self, answer: Callable, request: Any, response: Any) -> Any:
        response = answer(request, response)
        self._loaded = None  # another transition, such as shutdown, may have come before it
        self._update_subscriptions()  # if the transition was refused, frames go on
        return response

    async def _frames_end(self) -> None:
        """While the network is prepared for a new size, which takes seconds, wait for that in a thread."""
        if self._worker and self._worker.preparing:
            await self._in_thread(self._worker.wait, '')

    def _free(self) -> None:
        """Undo configure and activate, as far as they came."""
        self._active = False
        if self._worker:
            self._worker.stop()
            for camera in self._cameras:
                camera.unsubscribe()
        for camera in self._cameras:
            camera.destroy()
        if self._announcements:
            self._announcements.destroy()
        self._worker, self._cameras, self._announcements = None, [], None
        if self._live:
            self._live.free()
            self._live = None
            _return_memory()

    # ---------------------------------------------------------------------------------------------- images

    def _update_subscriptions(self) -> None:
        """Subscribe to the images, or unsubscribe, as state, parameters and subscribers demand."""
        if not self._worker:
            return
        p = self._settings
        running = self._active and p.enabled
        if running:
            self._worker.resume()
        for camera in self._cameras:
            if running and (p.lazy != 'subscription' or camera.has_listener(p)):
                kind, topic = INPUTS[p.image_transport]
                camera.subscribe(kind, topic, partial(self._on_image, camera))
                camera.take(p.lazy == 'false' or camera.has_listener(p))
            else:
                camera.unsubscribe()
        if not running:
            self._worker.pause()

    def _on_image(self, camera: CameraOutputs, msg: Image | CompressedImage) -> None:
        p = self._settings
        # Some executors, such as EventsExecutor, take images that nobody wants.
        if not self._worker or p.lazy != 'false' and not camera.has_listener(p):
            return
        if not camera.rate.is_due(p.max_rate, monotonic()):
            return
        camera.health.frame_received()
        self._worker.put_image(camera, msg)
        # Give the interpreter to the worker at once; otherwise it waits 0.4 ms for the executor.
        sleep(2e-4)

    # ------------------------------------------------------------------------------------------ parameters

    def _apply(self, new: SegmentationParameters) -> None:
        if self._live and self._worker:
            if self._frames_otherwise(new):
                self._worker.check_framings(new.framings())
            network = new.network()
            if self._live.differs(network):
                try:
                    self._live.change(network, lambda loaded: self._follow(Plan.make(new, loaded.labels)))
                except Exception as e:  # whatever is wrong with the new network, the old one stays in force
                    raise ValueError(f'{error_line(e)}; {self._live.segmenter.card.network} stays in '
                                     'force') from e
                self.get_logger().info(f'now {one_line(self._live.segmenter.describe())}')
            else:
                plan = Plan.make(new, self._live.segmenter.labels)
                # Ids that mean something else must not be published before they are announced, nor after.
                waits = nullcontext() if plan.announces_the_same(self._worker.plan) else self._live.use()
                with waits:
                    self._follow(plan)
                if new.model != self._settings.model and new.weights:
                    self.get_logger().warning(one_line(
                        f"model {new.model!r} has no effect yet: parameter 'weights' is {new.weights!r}, "
                        "which takes precedence until it is ''"))
            self._live.overlay_alpha, self._live.smoothing = new.overlay_alpha, bool(new.smoothing)
        self._settings = new
        self._update_subscriptions()

    def _frames_otherwise(self, new: SegmentationParameters) -> bool:
        old = self._settings
        return (new.rotation, new.roi, new.mask) != (old.rotation, old.roi, old.mask)

    def _follow(self, plan: Plan) -> None:
        """Process the next frames by a plan, and announce its classes where they are others."""
        assert self._worker and self._announcements
        if not plan.announces_the_same(self._worker.plan):
            self._announcements.publish(plan)
        self._worker.plan = plan

    def _takes_long(self, parameters: list[Any]) -> bool:
        """
        Return whether a request needs another network, or must wait for frames of a new size.

        These frames wait for a compiler, for seconds, and hold the network that is in force.
        """
        live, worker = self._live, self._worker
        if live is None or worker is None or self.executor is None:
            return False
        try:
            new = self._preview([Parameter.from_parameter_msg(p) for p in parameters])
            if live.differs(new.network()) or self._new_sizes(new, live, worker):
                return True
            return bool(worker.preparing) and (
                new.enabled != self._settings.enabled
                or not Plan.make(new, live.segmenter.labels).announces_the_same(worker.plan))
        except Exception:  # the answer says what is wrong
            return False

    def _new_sizes(self, new: SegmentationParameters, live: LiveSegmenter, worker: FrameWorker) -> list[
            tuple[int, int]]:
        """Return the (height, width) that the network will see of the cameras' images, and has not yet."""
        known = self._settings.seen_sizes(worker.image_sizes)
        return [size for size in new.seen_sizes(worker.image_sizes)
                if size not in known and not live.is_ready(size)]

    async def _load_beside(self, parameters: list[Any]) -> None:
        """
        Prepare what a request asks for while what is in force goes on; errors are `_apply`'s.

        That is another network, or the sizes at which it sees the cameras' images.
        """
        live, worker = self._live, self._worker
        if live is None or worker is None:
            return
        try:
            new = self._preview([Parameter.from_parameter_msg(p) for p in parameters])
            if self._frames_otherwise(new):
                worker.check_framings(new.framings())
            network, sizes = new.network(), self._new_sizes(new, live, worker)
        except Exception:  # the answer says what is wrong
            return
        now, what = live.segmenter.card.network, ''
        if live.differs(network):
            what, sizes = network.model, new.seen_sizes(worker.image_sizes)
            if new.resolution != self._settings.resolution:  # the network may be the same
                what += f' at {new.resolution or "the size of its weights"}'
            self.get_logger().info(f'loading {one_line(what)}; {now} goes on meanwhile')
        elif sizes:
            what = f'{now} for images of ' + ', '.join(f'{width}x{height}' for height, width in sizes)
            self.get_logger().info(f'preparing {what}; the size in force goes on meanwhile')
        if what:
            await self._in_thread(partial(live.prepare, network, sizes), what)
        await self._frames_end()

    async def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """Set the parameter `enabled`."""
        wanted = Parameter('enabled', value=request.data)
        result = await self._set([wanted.to_parameter_msg()], lambda: self.set_parameters([wanted])[0])
        response.success = result.successful
        response.message = result.reason or ('enabled' if request.data else 'disabled')
        return response

    # ----------------------------------------------------------------------------------------- diagnostics

    def _publish_diagnostics(self) -> None:
        msg = DiagnosticArray()
        msg.header.stamp = self.get_clock().now().to_msg()
        if not self._live:
            for name in self._settings.camera_names():
                msg.status.append(self._status(name, self._unconfigured(), ''))
            self._diagnostics.publish(msg)
            return
        assert self._worker
        topic = self._cameras[0].label.topic_name
        if self.count_publishers(topic) > 1:
            self.get_logger().warning(
                f'{topic} has another publisher: is this node running twice? Give each node its own name or '
                'namespace', throttle_duration_sec=60.0)
        network = self._live.segmenter
        # 'model' is the former name of 'network'; dashboards may read it.
        more = {'model': network.card.network, **network.identity(), **network.resources(),
                'smoothing': f'{self._settings.smoothing:g}'}
        statuses = without_stale([self._camera_status(camera, more) for camera in self._cameras])
        for camera, status in zip(self._cameras, statuses):
            if self._loading:
                status = replace(status, summary=f'{status.summary}; loading {self._loading}')
            msg.status.append(self._status(camera.name, status, str(network.device)))
        self._diagnostics.publish(msg)

    def _camera_status(self, camera: CameraOutputs, more: dict[str, str]) -> Status:
        """Return the status of one camera; `more`: values that all cameras share."""
        assert self._worker
        camera.look()
        p, sim_time = self._settings, self.get_parameter('use_sim_time').value
        others = camera.points.values() if camera.points else {}
        if p.max_rate:
            others['left out by max_rate'] = str(camera.rate.left_out)
        status = camera.health.status(self._worker.dropped(camera), others | more,
                                      left_out=camera.rate.left_out,
                                      max_age_s=p.max_age_warning, sim_time=sim_time)
        if not self._active:
            return replace(status, level=OK, summary='inactive: the network is loaded')
        if not p.enabled:
            return replace(status, level=OK, summary="at rest: parameter 'enabled' is false")
        if self._worker.preparing:
            return replace(status, level=OK, summary=f'preparing {self._worker.preparing}')
        if p.lazy != 'false' and not camera.has_listener(p):
            return replace(status, level=OK, summary='idle: no output has a subscriber')
        if camera.points and (failure := camera.points.failure()) and status.level in (OK, WARN):
            status = replace(status, level=WARN, summary=f'{failure}; {status.summary}')
        if hint := camera.silence():
            self.get_logger().warning(hint, once=True)
            status = replace(status, summary=f'{status.summary}; {hint}')
        if sim_time and not self.get_clock().now().nanoseconds and status.level in (OK, WARN):
            fault = '/clock stands at 0' if self.count_publishers('/clock') else 'nothing publishes /clock'
            return replace(status, level=WARN, summary=(
                f'use_sim_time is true, but {fault}: play the recording with --clock, or set use_sim_time to '
                f'false; {status.summary}'))
        return status

    def _unconfigured(self) -> Status:
        state = self._state_machine.current_state[1]  # or finalized
        if self._error:
            return Status(ERROR, f'{state}: {self._error}', {})
        what = f'loading {self._loading}' if self._loading else 'no network is loaded'
        return Status(OK, f'{state}: {what}', {})

    def _status(self, camera: str, status: Status, device: str) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=bytes([status.level]), message=one_line(status.summary), hardware_id=device,
            name=f'{self.get_fully_qualified_name()[1:]}: {camera} frames'.replace('  ', ' '),
            values=[KeyValue(key=k, value=one_line(v)) for k, v in status.values.items()])

def _load(p: SegmentationParameters) -> LiveSegmenter:
    """Load and warm up the network that the parameters ask for."""
    return LiveSegmenter(p.network(), cameras=len(p.camera_names()), overlay_alpha=p.overlay_alpha,
                         smoothing=bool(p.smoothing), sizes=p.seen_sizes())


def _return_memory() -> None:
    """Give freed memory back to the operating system, which Python and glibc would keep for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def main() -> int:
    """Run the node until a signal ends it; returns the exit code."""
    def check(node: SegmentationNode) -> bool:
        node.check()
        return False

    return run(partial(SegmentationNode, start_in_executor=True), check, usage(
        'segmentation_node: segments camera images (image, or image/compressed) and publishes ~/label, '
        '~/overlay and more.\nTopics, parameters and diagnostics: docs/node.md', SegmentationParameters,
        'segmentation_node --ros-args -p model:=laanet -r image:=/camera/image_raw'))
