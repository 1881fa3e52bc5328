# Edge audio toolkit. `make help` is the table of contents.
PYTHON ?= python3
CC ?= gcc
RECIPE ?= models/recipes/kws.yaml
CORE := toolkit/core/libea.so
CORE_FLAGS := -std=c99 -O3 -fPIC -shared -Wall -Wextra -Wconversion -Wshadow -Werror
DEVICE := .venv
TFLM := .venv-tflm
HOST := .venv-host
LITERT := .venv-litert
# These hold TensorFlow in the process, in which tflite-runtime then loads no model (tests/conftest.py).
TENSORFLOW_TESTS := architectures channels distill distribute layers prune qat train
# Of pytest-xdist: a file's tests one after the other, because they share what it makes.
TWO_AT_ONCE := -q -n 2 --dist loadfile
# The newest Python beside tflite-runtime's last one; used for the second runtime and numpy 2.
PYTHON_LITERT ?= $(PYTHON)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(DEVICE)/ready core ## the device environment (runtime only) and the C core

demo: setup ## stream the shipped sample scene through the shipped keyword bundle, and draw it
	@mkdir -p build
	$(DEVICE)/bin/edge-audio run kws models/samples/scene.wav
	$(DEVICE)/bin/edge-audio plot kws models/samples/scene.wav build/scene.png

check: setup $(HOST)/ready $(LITERT)/ready $(TFLM)/ready ## every test, under both runtimes and both numpy generations (STRICT=1: no skips)
	$(HOST)/bin/python -m pytest $(TWO_AT_ONCE)
	$(HOST)/bin/python -m pytest $(TWO_AT_ONCE) $(patsubst %,tests/test_%.py,$(TENSORFLOW_TESTS))
	$(LITERT)/bin/python -m pytest $(TWO_AT_ONCE)

core: $(CORE) ## compile the C core

$(CORE): $(wildcard toolkit/core/*.c toolkit/core/*.h)
	@command -v $(CC) >/dev/null || { echo "no C compiler ($(CC)): sudo apt install gcc libc6-dev" >&2; exit 1; }
	$(CC) $(CORE_FLAGS) -o $@.new toolkit/core/*.c && mv $@.new $@

train: $(HOST)/ready ## train RECIPE on DATA=DIR
	@test -n "$(DATA)" || { echo "make train needs DATA=DIR, the root of a data set; python -m models fetch speech_commands gets one" >&2; exit 2; }
	$(HOST)/bin/python -m models train $(RECIPE) --data $(DATA)

quantize: core $(HOST)/ready $(TFLM)/ready ## int8 bundle of RECIPE, within budgets (WEIGHTS=FILE, DATA=DIR, PROFILE=NAME, BASELINE=FILE)
	$(HOST)/bin/python -m quantize $(RECIPE) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(DATA),--data $(DATA)) \
		$(if $(PROFILE),--profile $(PROFILE)) $(if $(BASELINE),--baseline $(BASELINE))

bench: core $(HOST)/ready $(HOST)/bench ## cost of the front end beside its peers, and of the runtime
	$(HOST)/bin/python tests/bench/front_end.py
	$(HOST)/bin/python tests/bench/runtime.py
	$(DEVICE)/bin/edge-audio bench kws

golden: core $(HOST)/ready ## rewrite the golden vectors; check fails on any difference
	$(HOST)/bin/python tests/golden.py
	$(HOST)/bin/python tests/golden_lstm.py
	$(HOST)/bin/python tests/golden_models.py

check-arm: setup ## the same integers on aarch64, armv7 (from their wheels), Cortex-M4 and M55 under qemu
	$(DEVICE)/bin/python tests/arm/check_arm.py
	$(DEVICE)/bin/python tests/arm/check_runtime.py

check-vm: setup ## deployments from end to end to a booted arm64 Debian under qemu-system (half an hour and more)
	$(DEVICE)/bin/python tests/vm/check_vm.py

lint: $(HOST)/ready ## ruff
	$(HOST)/bin/python -m ruff check .

wheels: $(DEVICE)/ready ## the wheels for x86-64, aarch64 and armv7, in dist/ (ARCH=NAME: that one alone)
	$(DEVICE)/bin/python -m devices.wheels $(ARCH)

clean: ## all that make made, environments included
	rm -rf $(DEVICE) $(HOST) $(LITERT) $(TFLM) build dist *.egg-info $(CORE)

# --- environments ---------------------------------------------------------------------------------
VENV_HINT := cannot make a Python environment: sudo apt install python3-venv

define venv
	@$(1) -m venv $(2) || { echo "$(VENV_HINT)" >&2; exit 1; }
	@$(2)/bin/python -m pip install -q --disable-pip-version-check $(3)
	@touch $(2)/ready
endef

$(DEVICE)/ready: pyproject.toml setup.py | $(CORE)
	@echo "setting up $(DEVICE) (about 20 s)" >&2
	$(call venv,$(PYTHON),$(DEVICE),"setuptools>=77" && EDGE_AUDIO_SKIP_CORE=1 $(DEVICE)/bin/python -m pip install -q --disable-pip-version-check -e ".[all]")

$(HOST)/ready: requirements-host.txt
	@echo "setting up $(HOST) with TensorFlow (2.5 GB, some minutes)" >&2
	$(call venv,$(PYTHON),$(HOST),-r requirements-host.txt)

$(LITERT)/ready: requirements-litert.txt
	@echo "setting up $(LITERT)" >&2
	$(call venv,$(PYTHON_LITERT),$(LITERT),-r requirements-litert.txt)

# TFLite Micro, which measures the tensor arena; it has wheels for x86-64 and Python 3.11 alone.
$(TFLM)/ready: requirements-tflm.txt
	@echo "setting up $(TFLM)" >&2
	@$(PYTHON) -m venv $(TFLM) || { echo "$(VENV_HINT)" >&2; exit 1; }
	@$(TFLM)/bin/python -m pip install -q --disable-pip-version-check -r requirements-tflm.txt && touch $@ \
		|| { echo "tflite-micro does not install here: no arena will be measured" >&2; rm -rf $(TFLM); }

$(HOST)/bench: $(HOST)/ready
	@$(HOST)/bin/python -m pip install -q --disable-pip-version-check pymicro-features pymicro-wakeword python_speech_features librosa
	@touch $@

.PHONY: help setup demo check core train quantize bench golden check-arm check-vm lint wheels clean
.DEFAULT_GOAL := help
