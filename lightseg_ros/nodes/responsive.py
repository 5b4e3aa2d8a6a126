# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node that answers its other clients while one client's request takes long."""
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
import difflib
from functools import partial
from threading import Thread
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.task import Future

from ..texts import error_line
from .turns import Turns


class ResponsiveNode(LifecycleNode):
    """
    Answers requests for parameters and transitions in coroutines, whose slow parts run in threads.

    A subclass says which parameters take long (`_takes_long`), and does the slow part of a request before
    rclpy's own answer: `_load_beside` of parameters, `_change_state` of a transition.
    """

    # Checks the parameters of a request without setting them; returns the values that would be in force.
    _preview: Callable[[list[Parameter]], Any]

    def __init__(self, name: str, **options: Any) -> None:
        self._loading = ''  # what a thread is loading
        self._turns = Turns()  # of the requests that load or wait in a thread
        super().__init__(name, **options)

    def destroy_node(self) -> None:
        """
        Destroy all that the node has in DDS.

        rclpy leaves out the state machine, which holds the node itself: its shared memory, 70 MB, would stay
        behind when the process ends.
        """
        super().destroy_node()
        if hasattr(self, '_state_machine'):  # rclpy calls this even if the constructor has failed
            self._state_machine.destroy_when_not_in_use()

    @abstractmethod
    def _takes_long(self, parameters: list[Any]) -> bool:
        """Return whether setting these ROS messages needs `_load_beside` first; must not raise."""

    @abstractmethod
    async def _load_beside(self, parameters: list[Any]) -> None:
        """Prepare what a request asks for while what is in force goes on; rclpy's answer names errors."""

    @abstractmethod
    async def _change_state(self, answer: Callable, request: Any, response: Any) -> Any:
        """Do what takes long before a transition, then return `answer(request, response)`."""

    async def _in_thread(self, work: Callable[[], None], model: str) -> None:
        """
        Wait until a thread has done some work, while the executor goes on; `work` must not raise.

        `model`: what it loads, for the diagnostics; '' for other work.
        """
        assert self.executor
        executor = self.executor
        done: Future = Future(executor=executor)

        def run_work() -> None:
            try:
                work()
            finally:
                with suppress(Exception):  # the executor was shut down meanwhile
                    done.set_result(None)
                    executor.wake()

        self._loading = model or self._loading
        Thread(target=run_work, name='loading', daemon=True).start()
        await done
        if model:
            self._loading = ''

    def _answer_while_loading(self) -> None:
        """Let the services that load a network do so in a thread, so that all others go on."""
        # In a group of its own: while such a service waits, the default group would be blocked.
        group = ReentrantCallbackGroup()
        for service in self.services:
            if service.srv_name.endswith('/set_parameters'):
                service.callback = partial_coroutine(self._set_one_by_one, service.callback)
            elif service.srv_name.endswith('/set_parameters_atomically'):
                service.callback = partial_coroutine(self._set_together, service.callback)
            elif service.srv_name.endswith('/change_state'):
                service.callback = partial_coroutine(self._change_state, service.callback)
            else:
                continue
            service.callback_group = group
            group.add_entity(service)

    async def _set_one_by_one(self, answer: Callable, request: Any, response: Any) -> Any:
        def set_one(parameter: Any) -> SetParametersResult:
            return answer(SetParameters.Request(parameters=[parameter]), SetParameters.Response()).results[0]

        for parameter in request.parameters:
            response.results.append(await self._set([parameter], partial(set_one, parameter)))
        return response

    async def _set_together(self, answer: Callable, request: Any, response: Any) -> Any:
        response.result = await self._set(request.parameters, lambda: answer(request, response).result)
        return response

    async def _set(self, parameters: list[Any], set_now: Callable[[], SetParametersResult],
                   ) -> SetParametersResult:
        """Call `set_now`, once all that takes long has been done beside what is in force."""
        try:
            self._check(parameters)
            if not self._takes_long(parameters):
                return set_now()
            # One after the other: each begins with what the one before has put in force.
            async with self._turns.next(self.executor):
                await self._load_beside(parameters)
                return set_now()
        except Exception as e:  # such as an unknown type; without an answer the client would wait
            return SetParametersResult(successful=False, reason=error_line(e))

    def _check(self, parameters: list[Any]) -> None:
        """Raise a ValueError where rclpy would name neither a parameter that it does not know nor a type."""
        known = set(self._parameters)
        for name in [p.name for p in parameters if p.name not in known]:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f'unknown parameter {name!r}; ' + (
                f'did you mean {near[0]!r}?' if near else '"ros2 param list" names those of this node'))
        given = [Parameter.from_parameter_msg(p) for p in parameters]
        # rclpy's own words for `ros2 param delete` are clear.
        self._preview([p for p in given if p.type_ != Parameter.Type.NOT_SET])


def partial_coroutine(function: Callable[..., Coroutine], answer: Callable) -> Callable:
    """Return a service callback that rclpy recognises as a coroutine, unlike functools.partial."""
    async def callback(request: Any, response: Any) -> Any:
        return await function(answer, request, response)
    return callback
