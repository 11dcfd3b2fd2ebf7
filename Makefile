# `make demo` and `make test` are all a fresh machine needs; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
JOBS ?= 2
FAULTS ?= 200
SEED ?= 0

.PHONY: help setup demo smoke test dist mutants faults lint format weights bench bench-gpu quality reproduce docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## build .venv from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $@

demo: setup ## make an audited data set of rare images in out/demo (OUT=... to choose)
	$(BIN)/rarefy run demo --out $(OUT)
	@echo "open $(OUT)/audit/report.html"

smoke: setup ## a small version of the demo: the same stages in well under a minute
	$(BIN)/rarefy run smoke --out $(or $(SMOKE_OUT),out/smoke)

test: setup ## run every test, in two processes (JOBS=... to choose)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

dist: setup ## build the source distribution and the wheel in dist/ and check them (RELEASE=1: for a release, docs/RELEASE.md)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[release]'
	rm -rf build dist
	RAREFY_RELEASE=$(RELEASE) $(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

mutants: setup ## test a random sample of mutants of the core (half an hour, resumable; docs/MUTANTS.md)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[mutants]'
	$(BIN)/python tests/mutants.py

faults: setup ## inject FAULTS=200 faults into real runs and check that no image is lost, doubled or wrong (15 minutes)
	PYTHONPATH=pipeline:tests:. $(BIN)/python -m faults --faults $(FAULTS) --seed $(SEED) --json out/faults.json

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

weights: setup ## train the embedded networks again (hours; the recipes in manifests/train name the images)
	$(BIN)/rarefy train diffusion manifests/train/fashion-mnist-28-diffusion.toml --out out/weights/diffusion
	$(BIN)/rarefy train classifier manifests/train/fashion-mnist-28-classifier.toml --out out/weights/classifier
	$(BIN)/rarefy train classifier manifests/train/fashion-mnist-28-classifier-ect.toml --out out/weights/classifier-ect
	$(BIN)/rarefy train classifier manifests/train/fashion-mnist-28-judge.toml --out out/weights/judge
	$(BIN)/rarefy train diffusion manifests/train/fashion-mnist-28-uncond-diffusion.toml --out out/weights/diffusion-uncond
	$(BIN)/python -m rarefy.training.embed --unet out/weights/diffusion --unet-uncond out/weights/diffusion-uncond \
		--classifier out/weights/classifier --classifier-ect out/weights/classifier-ect --judge out/weights/judge

bench: setup ## time the demo's guided steps on this machine: the best batch, larger images, two processes
	$(BIN)/rarefy bench manifests/demo.toml --batch auto --growth --actors 1,2

bench-gpu: setup ## the same on a GPU, in fast
	$(BIN)/rarefy bench manifests/demo.toml --batch auto --growth --actors 1,2 --device cuda --precision fast

quality: setup ## measure the embedded model: 10,000 unguided images against the test images (half an hour to an hour)
	$(BIN)/rarefy run manifests/quality.toml --out out/quality

reproduce: setup ## the papers' experiment: sweep, every sampler's images, docs/results.json (hours, resumable)
	$(BIN)/python -m benchmarks.quality.reproduce --stages sweep,final

docs: setup ## build the docs site in site/ (strict: a warning is an error)
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=pipeline $(BIN)/mkdocs build --strict --quiet

clean: ## remove the environment and caches (never data sets)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
