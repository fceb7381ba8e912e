# Two commands for a newcomer, on a machine with nothing but Python 3.11 and make:
#
#   make demo    export the embedded model, then generate pictures where torch is not installed
#   make test    everything that needs no GPU: ruff, mypy, pytest
#
# Also: make test-runtime PYTHON=python3.10    the tests that need no torch, in a clean environment

PYTHON ?= python3.11
TORCH_PYTHON ?= python3.11# exporting is tested on this one; PYTHON may be any that the runtime supports
PROMPTS = --prompt "red apple" --prompt "cat face" --prompt "rocket" --prompt "pizza" \
          --prompt "snowman" --prompt "guitar" --prompt "sunflower" --prompt "blue heart"

EXTRA_export = export
EXTRA_runtime = ort
EXTRA_dev = dev
TEST_BUNDLE = build/test.mmgen
SOURCES = $(wildcard export/*.py runtime/*.py tests/tiny*.py)

.PHONY: demo test test-runtime clean
.SECONDARY:

demo: .venv/export/ready .venv/runtime/ready
	mkdir -p build
	.venv/export/bin/mmgen-export --fp16 -o build/emoji.mmgen
	.venv/runtime/bin/python -c "import importlib.util as u; assert not u.find_spec('torch'); print('torch is not installed here')"
	.venv/runtime/bin/mmgen generate build/emoji.mmgen $(PROMPTS) -o build/sheet.png

test: .venv/dev/ready $(TEST_BUNDLE)/bundle.json
	.venv/dev/bin/ruff check .
	.venv/dev/bin/mypy
	MMGEN_TEST_BUNDLE=$(TEST_BUNDLE) .venv/dev/bin/pytest

# Not editable and without constraints: the wheel, with what pip finds for this Python.
test-runtime: $(TEST_BUNDLE)/bundle.json
	rm -rf .venv/clean build/lib build/bdist.*
	$(PYTHON) -m venv .venv/clean
	.venv/clean/bin/pip install --quiet --disable-pip-version-check '.[ort]' pytest pytest-timeout
	MMGEN_TEST_BUNDLE=$(TEST_BUNDLE) .venv/clean/bin/pytest

$(TEST_BUNDLE)/bundle.json: .venv/dev/ready $(SOURCES)
	mkdir -p build
	.venv/dev/bin/mmgen-export tests/tiny_text.py:tiny_text_model --fp16 -o $(TEST_BUNDLE)

.venv/%/ready: pyproject.toml constraints.txt
	rm -rf $(@D)
	$(TORCH_PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA_$*)]'
	touch $@

clean:
	rm -rf .venv build dist
