# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
# This package on a Jetson with JetPack 6. BASE has JetPack's CUDA and ROS 2 Humble; see docs/gpu.md.
ARG BASE=dustynv/ros:humble-desktop-l4t-r36.4.0
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends gcc python3-dev python3-pip libopenblas0 \
    && rm -rf /var/lib/apt/lists/*
# PyPI's torch for aarch64 does not run on JetPack 6.
RUN pip3 install --no-cache-dir --index-url https://pypi.jetson-ai-lab.io/jp6/cu126 torch triton
WORKDIR /ws/src/lightseg_ros
COPY . .
# Without dependencies, which would replace JetPack's torch.
RUN pip3 install --no-cache-dir --index-url https://pypi.org/simple \
      'numpy<2' 'opencv-python-headless>=4.8,<5' pyyaml safetensors 'simplejpeg>=1.8' tqdm \
    && pip3 install --no-cache-dir --no-deps .
ENV FASTDDS_DEFAULT_PROFILES_FILE=/ws/src/lightseg_ros/config/fastdds.xml
STOPSIGNAL SIGINT
CMD ["segmentation_node"]
