# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node subscribes to for one camera; messages that nobody wants are not taken."""
from collections.abc import Callable
from copy import copy
from time import monotonic
from typing import Any

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo

# Copied for each use, because rclpy writes QoS overrides into the profile that it is given.
# Depth 1: an image that waits in a queue is out of date when it is taken.
SENSOR_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)

INFO_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
LATCHED_INFO_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                              durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


class WhileWanted(MutuallyExclusiveCallbackGroup):
    """
    The callback group of a subscription whose messages stay in the middleware while `wanted` is false.

    Taking an image of 1280x720 that nobody looks at costs 3 ms. The subscription remains, so that the next
    image is there as soon as somebody wants it.
    """

    wanted = True

    def can_execute(self, entity: Any) -> bool:
        """Return whether the executor may wait for this entity; called by the executor."""
        # The events of a subscription wait too: in Fast DDS a message that is not taken wakes them up.
        return self.wanted and super().can_execute(entity)


class Images:
    """
    The subscription to a camera's images, while there is one.

    `on_lost` is called with the number of images that a publisher has sent since its previous one and that
    did not arrive here. They are counted by their sequence numbers: Fast DDS's event for lost messages counts
    2^31 - 1 at times, and knows nothing of images that were replaced in the queue of the subscription.
    """

    def __init__(self, node: Node, on_lost: Callable[[int], None]):
        self._node, self._on_lost = node, on_lost
        self._group = WhileWanted()
        self._subscription: Subscription | None = None
        self._last: dict[str, int] = {}  # sequence number of the last image of each publisher

    def subscribe(self, kind: type, topic: str, on_image: Callable[[Any], None]) -> None:
        """Subscribe, unless that is done."""
        def on_message(msg: Any, info: Any) -> None:
            self._count_lost(info)
            on_image(msg)

        if self._subscription is None:
            self._last.clear()
            self._subscription = self._node.create_subscription(
                kind, topic, on_message, copy(SENSOR_QOS), callback_group=self._group,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())

    def unsubscribe(self) -> None:
        """Undo `subscribe`."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def take(self, wanted: bool) -> None:
        """Take the images that arrive from now on, or leave them in the middleware."""
        if self._subscription is None:
            return
        if wanted and not self._group.wanted:
            # The image that waits there may be the last one of a camera that died long ago.
            with self._subscription.handle:
                while self._subscription.handle.take_message(self._subscription.msg_type, True):
                    pass
            self._last.clear()
        # A history without a limit, which only an override asks for, would fill the memory.
        unlimited = self._subscription.qos_profile.history == QoSHistoryPolicy.KEEP_ALL
        self._group.wanted = wanted or unlimited

    @property
    def topic(self) -> str | None:
        """The full name of the topic; None without a subscription."""
        return None if self._subscription is None else self._subscription.topic_name

    def _count_lost(self, info: Any) -> None:
        # Not every middleware and version of rclpy knows these.
        number, publisher = info.get('publication_sequence_number'), str(info.get('publisher_gid'))
        if number is None:
            return
        last = self._last.get(publisher, number)
        self._last[publisher] = number
        if number > last + 1:
            self._on_lost(number - last - 1)


class CameraInfoInput:
    """
    The subscription to camera_info, whether it is published with each image or once and latched.

    `latest`: the message that came last, `latest_s`: when, on the monotonic clock. Call `look` now and then:
    a latched message from before the subscription comes only to a subscription that asks for it, and that one
    would not connect to others.
    """

    def __init__(self, node: Node, topic: str, group: CallbackGroup | None = None):
        self._node, self._name, self._group = node, topic, group
        self.topic = node.resolve_topic_name(topic)
        self.latest: CameraInfo | None = None
        self.latest_s = float('-inf')
        self._subscriptions: list[Subscription] = []

    def subscribe(self) -> None:
        """Subscribe, unless that is done."""
        if not self._subscriptions:
            self._subscribe(INFO_QOS)
        self.look()

    def look(self) -> None:
        """Ask for a latched message if there is none yet and a publisher keeps one."""
        if len(self._subscriptions) == 1 and self.latest is None and any(
                publisher.qos_profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
                for publisher in self._node.get_publishers_info_by_topic(self.topic)):
            self._subscribe(LATCHED_INFO_QOS)

    def unsubscribe(self) -> None:
        """Undo `subscribe`."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions, self.latest = [], None

    def _subscribe(self, qos: QoSProfile) -> None:
        overriding = QoSOverridingOptions.with_default_policies() if qos is INFO_QOS else None
        self._subscriptions.append(self._node.create_subscription(
            CameraInfo, self._name, self._on_info, copy(qos), callback_group=self._group,
            qos_overriding_options=overriding))

    def _on_info(self, msg: CameraInfo) -> None:
        self.latest, self.latest_s = msg, monotonic()
