# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
# This package on a Jetson with JetPack 6. BASE has JetPack's torch and ROS 2; see docs/gpu.md.
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends gcc python3-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /ws/src/lightseg_ros
COPY . .
# Without dependencies, which would replace JetPack's torch.
RUN pip3 install --no-cache-dir 'opencv-python-headless>=4.8,<5' pyyaml safetensors 'simplejpeg>=1.8' tqdm \
    && pip3 install --no-cache-dir --no-deps .
ENV FASTDDS_DEFAULT_PROFILES_FILE=/ws/src/lightseg_ros/config/fastdds.xml
STOPSIGNAL SIGINT
CMD ["segmentation_node"]
