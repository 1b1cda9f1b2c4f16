# make demo | test | lint | bench: each sets up .venv by itself. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=
DEVICE ?= cuda
CORPUS ?=
export RAY_USAGE_STATS_ENABLED := 0
# Where it is set, each of the many processes that tests and jobs start would compile all of our code again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help gpu demo test test-slow lint format lock reference bench chaos clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -e ".[dev]" -c constraints.txt
	@touch $@

demo: $(STAMP) ## the main job on real footage: videos -> gaze shards -> report
	$(BIN)/python -m jobs.demo

test: $(STAMP) ## the tests, but for those of test-slow
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(STAMP) ## the tests that take minutes: cancelled and requeued Slurm jobs, a RayJob's entrypoint, chaos
	$(BIN)/python -m pytest -m slow --timeout=900 $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP) ## write constraints.txt from what .venv has
	$(BIN)/python .ci/lock.py

reference: $(STAMP) ## write docs/reference/ from the configs of the jobs
	$(BIN)/python -m jobs.reference

bench: $(STAMP) ## every benchmark, see docs/benchmarks.md; CORPUS=FOLDER of videos to measure with
	@test -d "$(CORPUS)" || { echo "CORPUS=$(CORPUS) is no folder: make bench CORPUS=FOLDER, any folder of videos" >&2; exit 2; }
	$(BIN)/python benchmarks/canvas_greedy.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/decode.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/thresholds.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/pipeline.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/two_stages.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/launches.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/training_memory.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/labels.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/tiling.py --frames 64
	$(BIN)/python benchmarks/memory.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/rl.py --scaling
	$(BIN)/python benchmarks/sizing.py
	$(BIN)/python benchmarks/sizing_check.py --rules --nodes 1 10 100 1000 --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/scale.py plan --videos 100000 --shards 10000
	$(BIN)/python benchmarks/scale.py index --samples 100000
	$(BIN)/python benchmarks/loader.py --corpus "$(CORPUS)"
	$(BIN)/python benchmarks/loader.py --corpus "$(CORPUS)" --million
	$(BIN)/python benchmarks/s3.py --corpus "$(CORPUS)"
	$(BIN)/python -m jobs.cli preprocess input="$(CORPUS)" output=build/bench clip.frames=8 clip.stride=2 clip.per_video=2
	$(BIN)/python benchmarks/train.py --data build/bench
	$(BIN)/python benchmarks/rl.py --data build/bench

# Without $(STAMP): a machine with PyTorch and a GPU need have nothing of ours installed.
gpu: ## the GPU tests, then the benchmarks on a GPU, in 8 minutes; DATA=DATASET of clips; DEVICE=cpu to try it
	@GPU_PYTHON=$(BIN)/python; test -x $$GPU_PYTHON || GPU_PYTHON=$(PYTHON); \
	$$GPU_PYTHON benchmarks/gpu.py --device $(DEVICE) $(if $(DATA),--data "$(DATA)") $(GPU_ARGS)

chaos: $(STAMP) ## random kills, outages and full disks under preprocess, train and rl; CHAOS_ARGS="--seed 1 --faults 20"
	$(BIN)/python -m tests.chaos.chaos $(CHAOS_ARGS)

clean: ## remove what the targets made
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
