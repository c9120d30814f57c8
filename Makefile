# make demo: the whole pipeline on synthetic rooms.  make nyu: on NYU's own file.  make test: lint, types, tests.
# make slow: the tests that take longest, which make test leaves out.
# Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What `make nyu` needs: DATA, a folder with nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat; WEIGHTS, the file
# that training starts from. PRESET=modern for a GPU.
PRESET ?= small
OUT ?= runs/nyu-$(PRESET)

.PHONY: demo named nyu test slow lint types unit integration clean

demo: $(READY)
	$(BIN)/jointseg run --preset demo --out runs/demo

named:
	@test -n "$(DATA)" -a -n "$(WEIGHTS)" \
		|| { echo "make nyu: DATA and WEIGHTS are needed: make nyu DATA=FOLDER WEIGHTS=FILE [PRESET=small] [OUT=FOLDER]"; exit 2; }

nyu: named $(READY)
	$(BIN)/jointseg run --preset $(PRESET) --data "$(DATA)" --out "$(OUT)" --set "network.weights=$(WEIGHTS)"

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -n 2

integration: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "jointseg needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
