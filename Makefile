# The two commands: make run (a report from a market), make test (everything CI checks). Each installs what it needs, once.
PYTHON ?= python3.11
MARKET ?= data_samples/corner
OUT    ?= runs/$(notdir $(patsubst %/,%,$(MARKET)))
BIN     = .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: run test lab clean
.venv/ready: settings.ini setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "malles needs Python 3.11 or newer: make run PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	touch $@

run: .venv/ready
	$(BIN)/malles run --market $(MARKET) --out $(OUT)

test: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --durations 12 tests

lab: .venv/ready
	$(BIN)/jupyter lab nbs

clean:
	rm -rf .venv runs
