# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
# ROS 2 Jazzy, torch with CUDA and this package, on x86-64. See docs/gpu.md for how to run it.
FROM ros:jazzy-ros-base
# gcc and Python's headers: Triton compiles our kernels when the node starts.
RUN apt-get update && apt-get install -y --no-install-recommends \
      gcc python3-dev python3-pip python3-venv ros-jazzy-vision-msgs ros-jazzy-rmw-fastrtps-cpp \
    && rm -rf /var/lib/apt/lists/*
# In an environment that sees ROS's own Python packages; numpy stays below 2, which they are built for.
RUN python3 -m venv --system-site-packages /opt/lightseg
ENV PATH=/opt/lightseg/bin:$PATH
RUN pip install --no-cache-dir torch triton 'numpy<2'
WORKDIR /ws/src/lightseg_ros
COPY . .
RUN pip install --no-cache-dir 'setuptools<80' '.[cpu,eval]' 'numpy<2' \
    && cd /ws && . /opt/ros/jazzy/setup.sh && python -m colcon build --merge-install --packages-select lightseg_ros
ENV FASTDDS_DEFAULT_PROFILES_FILE=/ws/src/lightseg_ros/config/fastdds.xml
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/bash", "-c", ". /opt/ros/jazzy/setup.bash && . /ws/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "lightseg_ros", "segment.launch.py"]
