# Needs only git, make and Python 3.11: every target installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CEPH := radosgw ceph-mon ceph-osd ceph-mgr ceph-common
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Every stage and test is a process that imports thousands of modules, and uv installs them uncompiled. Empty lets Python cache compiled
# modules; without the cache, compiling takes half the time of a small stage.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev repro flow show test test-ceph ceph demo-s3 fleet-setup fleet-demo faults kill fuzz audit mutants lint evidence extensions sweep tables bench bench-gpu miniworld lock clean

help:
	@echo "make repro      our method on the mini world's ten concepts; prints the score table"
	@echo "make repro PROFILE=paper  the whole paper on Stable Diffusion: checks GPU, disk, hub and hours, and starts with YES=1; PROFILE=table1: its first table"
	@echo "persres preflight --profile paper  one subject on the real weights against known answers, in minutes, before that"
	@echo "make test       lint and tests"
	@echo "make test-ceph  versions and the fleet's store against a real S3 server (make ceph installs it from Debian's packages, as root)"
	@echo "make demo-s3    publish and pull a version through an S3 server on this machine -> data/s3"
	@echo "make fleet-setup  register pools, deployments and automations at a Prefect server (docs/fleet.md)"
	@echo "make fleet-demo a whole fleet on this machine"
	@echo "make mutants    change one thing in the numerics at a time; count how many changes the tests catch -> data/mutants"
	@echo "make fuzz       damaged input for every reader, for an hour -> data/fuzz; MINUTES=5 for less"
	@echo "make kill       100 random kill -9 of whole commands -> data/faults (about half an hour)"
	@echo "make audit      known vulnerabilities of the pinned dependencies; needs the network"
	@echo "make faults     kill every process, count lost work -> data/faults (about half an hour)"
	@echo "make show       print the score table again"
	@echo "make evidence   measure the figures of docs/results.md and the model card -> data/evidence (about an hour on 2 cores)"
	@echo "make tables     the paper's tables 1, 3, 4, 5 with every rival and ablation -> data/tables, data/rivals"
	@echo "make extensions  every study that goes past the paper (docs/extensions; hours on 2 cores)"
	@echo "make sweep      the settings that the paper leaves open -> data/sweep"
	@echo "make bench      speed of training and sampling against diffusers and peft, on the mini world -> data/bench (docs/speed.md)"
	@echo "make bench-gpu  seconds and memory of Stable Diffusion v1.4's size on this GPU, random weights -> data/bench"
	@echo "make miniworld  train the mini world's models from scratch (hours on a CPU)"

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# torch with pip first (uv does not read pip's settings for wheel folders), the rest with uv.
$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "persres needs Python 3.11 or newer; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[pipeline]'
	touch $@

# For tests, and for training the mini world.
$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[pipeline,experiments,dev]'
	touch $@

# make repro PROFILE=paper prints the estimate, checks this machine and asks for YES=1; a failure leaves params.yaml and data/ as they were.
repro: setup
ifdef PROFILE
	persres repro --profile $(PROFILE) $(if $(YES),--yes)
else
	dvc repro
	persres show
endif

# The same pipeline as one Prefect flow; set PREFECT_API_URL to see it at a server.
flow: setup
	python -m flows.pipeline

show: setup
	persres show

lint: setup-dev
	ruff check .
	ruff format --check .

# Parallel tests first, with one process more than processors since some wait for servers; then the tests that measure time or kill processes.
test: lint
	python -m pytest -n $$(( $$(nproc) + 1 )) --dist loadfile --no-loadscope-reorder -m 'not alone and not ceph'
	python -m pytest -m 'alone and not ceph'

# The tests of versions and of the fleet's store against a real S3 server. They are skipped without Debian's packages and root.
test-ceph: setup-dev
	python -m pytest -m ceph -rs

ceph:
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CEPH)

# Starts a server, publishes v1 and v2, pulls v1 in another clone and samples with it; all in the temporary folder.
demo-s3: setup-dev
	python -m persres.experiments.s3_demo

# Registers work pools, deployments and the automations that mark dead runs as Crashed, at the server of PREFECT_API_URL.
fleet-setup: setup
	python -m flows.setup

# A Prefect server, an S3 server and two workers in their clones run the mini profile. Prints the server's address.
fleet-demo: setup-dev
	python -m tests.support.fleet_demo

# kill -9 of every process, S3 down, full disks, clock jumps, and 2,000 empty units -> data/faults. FAULTS="scheduler s3_down" runs only these.
faults: setup-dev
	python -m tests.support.faults $(FAULTS)

# Every fuzz target in a process of its own; inputs that fail go to tests/fuzz/corpus, which make test runs again.
MINUTES ?= 60
fuzz: setup-dev
	python -m tests.fuzz.run --minutes $(MINUTES) --seed $(SEED)

# personalize, dvc repro, publish, pull: killed at random times and run again. KILLS: in all
KILLS ?= 100
kill: setup-dev
	python -m tests.support.kills --kills $(KILLS) --seed $(SEED)

# Asks PyPI's advisory database about every pinned version. Not a part of lint: that runs without a network.
audit: setup-dev
	uv tool run pip-audit -r constraints.txt --no-deps --disable-pip --strict

# Change one thing in the numerics and see whether a test fails -> data/mutants; goes on where it stopped. MUTANTS, SEED: the random sample
MUTANTS ?= 150
SEED ?= 0
mutants: setup-dev
	python -m tests.support.mutants --count $(MUTANTS) --seed $(SEED)

evidence: setup
	persres dev evidence

extensions: setup
	persres dev extensions

sweep: setup
	persres dev sweep

tables: setup
	persres dev tables

# Stable Diffusion v1.4's size with random weights, without the hub: 150 iterations, 50 steps at batch 1, 4, 16, with and without LAG.
bench-gpu: setup
	persres dev full-size --dtype bfloat16 --train-steps 150
	persres dev bench sd14 --dtype bfloat16 --rounds 5 --steps 10 --batches 1,4,16,32 --concepts-per-batch 4,8

# On the mini world, in alternating runs against diffusers and peft, as for the committed figures. Run nothing else at the same time.
bench: setup
	OMP_NUM_THREADS=1 persres dev bench --rounds 5 --steps 5 --batches 1,8,32 --concepts-per-batch 4,8

miniworld: setup-dev
	persres dev miniworld

# Updates the pinned versions after a change in pyproject.toml.
lock: setup-dev
	uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
		--all-extras --upgrade pyproject.toml -o constraints.txt

clean:
	find .work -mindepth 1 -maxdepth 1 ! -name datasets -exec rm -rf {} + 2>/dev/null || true # downloads stay
	rm -rf data/settings.yaml data/concepts data/costs data/macro_class data/learned data/samples data/scores data/tables data/sheets data/cards
