# Two commands for a newcomer, on a machine with nothing but Python 3.11 and make:
#
#   make demo    export the embedded model to half-precision ONNX and compile it to FP16 engines, then generate
#                pictures where torch is not installed
#   make test    everything that needs no GPU: ruff, mypy, pytest; with GRID=1 all combinations of solvers' options too
#
# Also: make test-runtime PYTHON=python3.10    the tests that need no torch, in a clean environment
#       make campaign SECONDS=600 SEED=0         bundles that are wrong somewhere, as strangers may send them
#       make test-gpu PYTHON=python3             the tests that need a GPU, on the machine that has it
#       make test-engines    models of published sizes, compiled; DiT-XL/2 takes minutes, 9 GB of memory and 14 of disk

PYTHON ?= python3.11
TORCH_PYTHON ?= python3.11# exporting is tested on this one; PYTHON may be any that the runtime supports
GRID ?=# not empty: combinations of options beyond every pair of them, for those who change solvers
WHICH ?=# tests that test-runtime leaves out or takes, as options of pytest
SECONDS ?= 600
SEED ?= 0
BACKENDS ?= ort# extras that test-runtime installs: ort,openvino tests both backends of the CPU
EXPORTER ?= .venv/export# the environment that exports; .venv/dev, where that is there, saves a torch
CLEAN ?= .venv/clean# where test-runtime has its environment; of another name, two can run side by side
PROMPTS = --prompt "red apple" --prompt "cat face" --prompt "rocket" --prompt "pizza" \
          --prompt "snowman" --prompt "guitar" --prompt "sunflower" --prompt "blue heart"

ifeq ($(shell uname -sm),Linux x86_64)# elsewhere there are no wheels of these, and what needs them is skipped
RTX = ,rtx
BINDINGS = .venv/bindings/ready
endif
EXTRA_export = export$(RTX)
EXTRA_runtime = ort,images
EXTRA_dev = dev$(RTX)
EXTRA_gpu = $(if $(RTX),ort-cuda$(RTX),ort,tensorrt)
BUNDLE = build/emoji.mmgen
TEST_BUNDLE = build/test.mmgen
SOURCES = $(wildcard export/*.py export/*/*.py runtime/*.py runtime/*/*.py runtime/*/*/*.py tests/models/tiny*.py)
PACKAGED = $(shell find export engines runtime -type f -not -name '*.pyc')

# Of every generation that the runtime and the builder are for; tests read what they have, a folder each.
TENSORRT = 10.3.0 10.7.0 10.9.0.34 10.13.3.9 11.4.0.106
CUDA = 12.8.0 13.0.3 13.5.0
LEAN = 11.4.0.106
INSTALL = .venv/dev/bin/pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all:

.PHONY: campaign demo ready test test-runtime test-gpu test-engines clean
.SECONDARY:

demo: $(EXPORTER)/ready .venv/runtime/ready
	mkdir -p build
	$(EXPORTER)/bin/mmgen-export --fp16 -o $(BUNDLE)
	.venv/runtime/bin/python -c "import importlib.util as u; assert not u.find_spec('torch'); print('torch is not installed here')"
	.venv/runtime/bin/mmgen generate $(BUNDLE) $(PROMPTS) -o build/sheet.png
	$(EXPORTER)/bin/mmgen build $(BUNDLE)

test: .venv/dev/ready $(TEST_BUNDLE)/bundle.json $(BINDINGS)
	.venv/dev/bin/ruff check .
	.venv/dev/bin/mypy
	OMP_NUM_THREADS=1 MMGEN_TEST_BUNDLE=$(TEST_BUNDLE) $(if $(BINDINGS),MMGEN_TEST_BINDINGS=$(dir $(BINDINGS))) \
	    .venv/dev/bin/pytest -n 2 --dist loadfile $(if $(GRID),,-m 'not grid')

# What the tests and the demo need before they begin.
ready: .venv/dev/ready .venv/runtime/ready $(TEST_BUNDLE)/bundle.json $(BINDINGS) build/wheel/ready

# Not editable and without constraints: the wheel, with what pip finds for this Python.
test-runtime: $(TEST_BUNDLE)/bundle.json build/wheel/ready
	rm -rf $(CLEAN)
	$(PYTHON) -m venv $(CLEAN)
	$(CLEAN)/bin/pip install --quiet --disable-pip-version-check --no-compile "$$(echo build/wheel/*.whl)[$(BACKENDS),media]" \
	    pytest pytest-timeout
	OMP_NUM_THREADS=1 MMGEN_TEST_SECONDS=6 MMGEN_TEST_BUNDLE=$(TEST_BUNDLE) $(CLEAN)/bin/pytest $(WHICH)

build/wheel/ready: .venv/dev/ready pyproject.toml README.md $(PACKAGED)
	rm -rf $(@D) build/lib build/bdist.*
	.venv/dev/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(@D) .
	touch $@

# TensorRT itself is the system's; on a Jetson, which has no torch, copy BUNDLE there first.
test-gpu: $(if $(wildcard $(BUNDLE)/bundle.json),,$(BUNDLE)/bundle.json)
	$(PYTHON) -m venv --system-site-packages .venv/gpu
	.venv/gpu/bin/pip install --quiet --disable-pip-version-check -e '.[$(EXTRA_gpu),images]' pytest pytest-timeout
	MMGEN_TEST_BUNDLE=$(BUNDLE) .venv/gpu/bin/python -m pytest -m gpu -s

# Wrong bundles by the thousand, and threads that never rest: SECONDS of each, from SEED on.
campaign: .venv/dev/ready $(TEST_BUNDLE)/bundle.json
	rm -rf build/campaign.mmgen
	cp -r $(TEST_BUNDLE) build/campaign.mmgen
	.venv/dev/bin/mmgen build build/campaign.mmgen --target cpu
	.venv/dev/bin/python tests/campaign/run.py build/campaign.mmgen --seconds $(SECONDS) --seed $(SEED)
	.venv/dev/bin/python tests/campaign/soak.py build/campaign.mmgen --seconds $(SECONDS) --seed $(SEED)

test-engines: .venv/dev/ready
	mkdir -p build/true_sizes
	.venv/dev/bin/python benchmarks/engines.py --work build/true_sizes

$(BUNDLE)/bundle.json: $(EXPORTER)/ready
	mkdir -p build
	$(EXPORTER)/bin/mmgen-export --fp16 --no-engines -o $(BUNDLE)

$(TEST_BUNDLE)/bundle.json: .venv/dev/ready $(SOURCES)
	mkdir -p build
	.venv/dev/bin/mmgen-export tests/models/tiny_text.py:tiny_text_model --fp16 --no-engines -o $(TEST_BUNDLE)

.venv/bindings/ready: .venv/dev/ready
	rm -rf $(@D)
	for v in $(TENSORRT); do $(INSTALL) --target $(@D)/$$v tensorrt-cu12-bindings==$$v || exit; done
	for v in $(CUDA); do $(INSTALL) --target $(@D)/cuda-$$v cuda-bindings==$$v || exit; done
	$(INSTALL) --target $(@D)/lean tensorrt-lean-cu12-bindings==$(LEAN) tensorrt-lean-cu12-libs==$(LEAN)
	touch $@

.venv/%/ready: pyproject.toml constraints.txt
	rm -rf $(@D)
	$(TORCH_PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(EXTRA_$*)]'
	touch $@

clean:
	rm -rf .venv build dist
