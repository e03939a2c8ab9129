# Each target makes .venv and installs what it needs by itself.
#   make demo    measure handwritten digits (shipped with the package), plan how to train to a
#                target, train as planned, and write one page about it
#   make test    all tests, doctests included
#   make lint    ruff, mypy, import-linter
#   make bench   slow proofs and side-by-side figures, resumable: make bench FOR=150m
#   make gpu-check OUT=dir   what only a GPU can show, as JSON
# TORCH_INDEX=URL takes torch from another wheel index (PyTorch's index of CPU wheels, say).

PYTHON ?= python3
TORCH_INDEX ?=
OUT ?= runs/gpu-check
FOR ?= 150m
BENCH ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test lint bench gpu-check clean

demo: $(VENV)/.installed
	$(BIN)/anybatch plan digits --target 'loss<=0.06' --out $(DEMO)/plan
	$(BIN)/anybatch train digits --plan $(DEMO)/plan/plan.json --out $(DEMO)/train \
		|| test $$? -eq 1  # the target was missed, as one in five may: the page says so
	$(BIN)/anybatch report $(DEMO)/plan $(DEMO)/train --out $(DEMO)/report.html

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --doctest-modules src tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(BENCH) --for $(FOR)

# Machines with a GPU may have no network: there, GPU_PYTHON names a Python that has torch,
# numpy, cattrs, tyro and rich, and nothing is installed.
ifdef GPU_PYTHON
gpu-check:
	PYTHONPATH=src $(GPU_PYTHON) -m benchmarks.gpu_check --out $(OUT)
else
gpu-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu_check --out $(OUT)
endif

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and a few small packages into $(VENV) (once)"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

# The oracle of K-FAC's tests: one of its dependencies asks for torchvision, which it does not use.
ORACLE := curvlinops-for-pytorch backpack-for-pytorch einconv einops linear_operator opt_einsum scipy unfoldNd jaxtyping wadler_lindig

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(ORACLE)
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
