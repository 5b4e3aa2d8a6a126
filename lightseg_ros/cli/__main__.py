# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m lightseg_ros.cli` is `lightseg`, and runs in a checkout that is not installed, too."""
from . import main

raise SystemExit(main())
