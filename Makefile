# Everything runs in .venv, made from pyproject.toml and the exact versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# tests of a file share what they start; tests/conftest.py puts the files in order
SPREAD := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10
# the tests start dozens of Python programs, and each would compile every file again
unexport PYTHONDONTWRITEBYTECODE
# a test that hangs fails after `timeout` in pyproject.toml; the slow ones may take longer
LONG := --timeout 2400
# a file starts up to five nodes, each as many processes: more files than cores make their starts late
NODES_SPREAD := $(SPREAD) -n 2

.PHONY: demo test test-nodes chaos test-slow test-network test-network-slow test-versions test-clients test-clients-slow test-lesser-cpu tools check format bench clean

demo: $(READY)  ## four unlike nodes on this machine plan, serve and answer, checked token by token
	$(BIN)/swarm demo

test: $(READY)  ## the ordinary suite
	$(BIN)/python -m pytest $(SPREAD) -m "not slow and not nodes and not network and not clients"

test-nodes: $(READY)  ## swarms of whole nodes as processes of their own, the demo among them
	$(BIN)/python -m pytest $(NODES_SPREAD) -m "nodes and not slow"

chaos: $(READY)  ## a minute of faults on whole nodes: every answer is checked, nothing may be left behind
	$(BIN)/python -m benchmarks.chaos --seconds 60 --every 7 --nodes 4 --clients 4

test-slow: $(READY)  ## the long tests: every architecture, larger swarms
	$(BIN)/python -m pytest $(SPREAD) $(LONG) -m "slow and not network and not clients"

test-network: $(READY) tools  ## nodes on hosts of their own, as network namespaces; skipped without root
	$(BIN)/python -m pytest -rs -m "network and not slow" tests/network

test-network-slow: $(READY) tools  ## the long ones of them: partitions, repeated starts
	$(BIN)/python -m pytest -rs $(LONG) -m "network and slow" tests/network

test-versions: $(READY)  ## nodes and clients of the version before beside those of today
	$(BIN)/python -m pytest --durations 3 tests/whole/test_neighbouring_version.py

test-clients: $(READY) .clients/now .clients/old  ## other makers' clients against a gateway and three nodes
	$(BIN)/python -m pytest -m "clients and not slow" tests/whole/test_gateway_clients.py

test-clients-slow: $(READY) .clients/many  ## LangChain, LiteLLM and llm: 300 MB to install
	$(BIN)/python -m pytest -m "clients and slow" tests/whole/test_gateway_clients.py

.clients/%: tests/whole/clients/%.txt $(READY)
	@rm -rf $@ && $(BIN)/python -m pip install --quiet --no-compile --no-deps --target $@ --requirement $<

test-lesser-cpu: $(READY)  ## the engine's tests as on a CPU without AVX-512, or without AVX2
	$(BIN)/python scripts/lesser_cpu.py $(BIN)/python -m pytest $(SPREAD) -m "not slow" tests/node/engine

tools:  # what the network tests need of the system, where we may install it
	@{ command -v ip && command -v nft; } >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends iproute2 nftables; } >/dev/null \
	  || echo "iproute2 or nftables could not be installed: network tests that need them are skipped"

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## short runs of both benchmarks; `python -m benchmarks.swarm` measures everything
	$(BIN)/python -m benchmarks.engine --quick
	$(BIN)/python -m benchmarks.swarm --quick

bench-thousand: $(READY)  ## node's control code on virtual time: 1,000 peers for an hour, 50 for a day
	$(BIN)/python -m benchmarks.thousand --peers 1000 --hours 1
	$(BIN)/python -m benchmarks.thousand --peers 50 --hours 24 --first-fit

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .clients .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Swarm needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .[gateway]
	@touch $(READY)
