# Everything sets itself up: git, make and Python 3.11 are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CEPH := radosgw ceph-mon ceph-osd ceph-mgr ceph-common
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Every stage and test is a process with thousands of modules to import, and uv leaves them uncompiled: where compiled modules may not be
# kept, each compiles them all anew, which is half of the seconds of a small stage. Empty means that they may.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev repro flow show test test-ceph ceph demo-s3 fleet-setup fleet-demo faults lint evidence beyond sweep tables bench bench-gpu miniworld lock clean

help:
	@echo "make repro      ours on the mini world's ten concepts; prints the score table"
	@echo "make repro PROFILE=paper  the whole paper on Stable Diffusion; needs the hub and a GPU (persres plan --profile paper first)"
	@echo "make test       lint and tests"
	@echo "make test-ceph  versions and the fleet's store against a real S3 server (make ceph installs it from Debian's packages, as root)"
	@echo "make demo-s3    a version's whole round trip through S3 on this machine -> data/s3"
	@echo "make fleet-setup  pools, deployments, automations at a Prefect server (docs/fleet.md)"
	@echo "make fleet-demo a whole fleet on this machine"
	@echo "make faults     kill everything and count what is lost -> data/faults (about half an hour)"
	@echo "make show       print the score table again"
	@echo "make evidence   every figure of docs/results.md and the model card again -> data/evidence (about an hour on 2 cores)"
	@echo "make tables     the paper's tables 1, 3, 4, 5 with every rival and ablation -> data/tables, data/rivals"
	@echo "make beyond     what goes past the paper (docs/beyond.md) -> data/beyond (hours on 2 cores)"
	@echo "make sweep      the settings that the paper leaves open -> data/sweep"
	@echo "make bench      training and sampling beside diffusers and peft, on the mini world -> data/bench (docs/speed.md)"
	@echo "make bench-gpu  seconds and memory of SD v1.4's size on this GPU, random weights -> data/bench"
	@echo "make miniworld  train the mini world's models from nothing (hours on a CPU)"

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# torch by pip first (uv does not see every wheel folder that pip is told of), the rest by uv.
$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "persres needs Python 3.11 or newer; say make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[pipeline]'
	touch $@

# What only tests and the mini world's own training need.
$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[pipeline,experiments,dev]'
	touch $@

# make repro PROFILE=paper writes the profile's name into params.yaml first, as you would, and says what is ahead.
repro: setup
	$(if $(PROFILE),persres use $(PROFILE))
	$(if $(PROFILE),persres plan)
	dvc repro
	persres show

# The same chain as one Prefect flow; set PREFECT_API_URL to watch it in a server.
flow: setup
	python -m flows.pipeline

show: setup
	persres show

lint: setup-dev
	ruff check .
	ruff format --check .

# Side by side what can be, one more than there are processors since servers are waited for; then, with nothing beside them, the tests that watch the clock and kill processes.
test: lint
	python -m pytest -n $$(( $$(nproc) + 1 )) --dist loadfile --no-loadscope-reorder -m 'not alone and not ceph'
	python -m pytest -m 'alone and not ceph'

# The tests of versions and of the fleet's store against a real S3 server. Without Debian's packages and root they are skipped, and say so.
test-ceph: setup-dev
	python -m pytest -m ceph -rs

ceph:
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CEPH)

# Server, v1, v2, v1 pulled elsewhere and drawn: all on this machine, in clones in the temporary folder.
demo-s3: setup-dev
	python -m persres.experiments.s3_demo

# Work pools, deployments and the automations that mark dead runs Crashed, at the server of PREFECT_API_URL.
fleet-setup: setup
	python -m flows.setup

# A Prefect server, an S3 server and two agents in clones of their own; the mini pipeline through them. Says where to look.
fleet-demo: setup-dev
	python -m tests.support.fleet_demo

# kill -9 of everything, S3 away, disks full, clocks jumping; and 2,000 units that do nothing -> data/faults. FAULTS="parent s3_down": these alone
faults: setup-dev
	python -m tests.support.faults $(FAULTS)

evidence: setup
	persres evidence

beyond: setup
	persres beyond

sweep: setup
	persres sweep

tables: setup
	persres tables

# Stable Diffusion v1.4's size with random weights, so no hub: 150 iterations, 50 steps at batch 1, 4, 16, with and without LAG.
bench-gpu: setup
	persres rates --dtype bfloat16 --train-steps 150
	persres bench sd14 --dtype bfloat16 --rounds 5 --steps 10 --batches 1,4,16,32 --together 4,8

# On the mini world, beside diffusers and peft, in alternating runs, as the committed figures were measured; wants the machine for itself.
bench: setup
	OMP_NUM_THREADS=1 persres bench --rounds 5 --steps 5 --batches 1,8,32 --together 4,8

miniworld: setup-dev
	persres miniworld

# Renew the pinned versions after a change in pyproject.toml.
lock: setup-dev
	uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
		--all-extras --upgrade pyproject.toml -o constraints.txt

clean:
	find .work -mindepth 1 -maxdepth 1 ! -name datasets -exec rm -rf {} + 2>/dev/null || true # downloads stay
	rm -rf data/concepts data/costs data/macro_class data/learned data/samples data/scores data/tables data/sheets data/cards
