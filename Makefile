# The same few words for people and CI. The first one that is called makes .venv, from PyPI, without a ROS distribution.
PYTHON ?= python3
INPUT ?= synthetic
MODEL ?= laanet
RESOLUTION ?=
SECONDS ?= 30
TOPIC ?=
CASES ?= 3000
SEED ?= 0
MINUTES ?= 10
BIN := .venv/bin

.PHONY: help demo test check docs fuzz soak bench lock sbom clean

help:
	@echo 'make demo [INPUT=folder|video|bag|/dev/video0] [MODEL=laanet] [RESOLUTION=WxH] [SECONDS=30] [TOPIC=image topic of a bag]'
	@echo '              camera in, labels out; writes picture, video and figures to out/demo'
	@echo 'make test     tests'
	@echo 'make check    ruff and mypy'
	@echo 'make fuzz     [CASES=3000] [SEED=0] mutated input for everything that reads what others wrote'
	@echo 'make soak     [MINUTES=10] [SEED=0] real nodes under random faults; plots memory and more to out/soak.png'
	@echo 'make docs     rewrite the generated blocks and pictures of the documentation'
	@echo 'make bench    speed tables for this machine'
	@echo 'make lock     pin every package in requirements.lock, with hashes; make sbom lists them as CycloneDX'
	@echo 'make clean    remove what the others made, .venv too'

demo: .venv/run
	$(BIN)/lightseg demo --input '$(INPUT)' --model '$(MODEL)' --resolution '$(RESOLUTION)' --seconds $(SECONDS) \
	  --image-topic '$(TOPIC)'

test: .venv/dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --durations=15

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/run
	$(BIN)/python docs/update.py
	$(BIN)/python docs/pictures.py

fuzz: .venv/dev
	OPENCV_LOG_LEVEL=SILENT $(BIN)/python test/fuzz.py --cases $(CASES) --seed $(SEED)

soak: .venv/dev
	OPENCV_LOG_LEVEL=SILENT $(BIN)/python test/soak.py --minutes $(MINUTES) --seed $(SEED) --plot out/soak.png

bench: .venv/run
	$(BIN)/lightseg bench

lock: .venv/run
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.10 --generate-hashes --no-annotate --quiet \
	  --no-emit-package lightseg-ros --custom-compile-command 'make lock' --output-file requirements.lock

sbom: .venv/run
	$(BIN)/python -m pip install -q --disable-pip-version-check cyclonedx-bom
	mkdir -p out
	$(BIN)/cyclonedx-py requirements requirements.lock --output-file out/sbom.json

clean:
	rm -rf .venv out build install log lightseg_ros.egg-info

# Each stamp is newer than the requirements that it was made from.
.venv/run: requirements.txt setup.py setup.cfg
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo 'ERROR: needs CPython 3.10 to 3.14 with venv (Debian, Ubuntu: apt install python3-venv); this is' \
	  "$$($(PYTHON) --version); name another with PYTHON=..."; exit 1; }
	@echo 'Making .venv from PyPI: ROS 2, torch, OpenVINO and others; some minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
