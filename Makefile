# Each target alone does all it needs on a fresh Debian 12 or Ubuntu 24.04 machine.
PRESET ?= cpu
# For example CMAKE_FLAGS=-DFOURIERKV_WERROR=ON
CMAKE_FLAGS ?=
BUILD := build/$(PRESET)

.PHONY: build demo test asan tsan fuzz bench format clean

build:
	./bootstrap.sh
	cmake --preset $(PRESET) -Wno-dev --log-level=WARNING $(CMAKE_FLAGS)
	cmake --build --preset $(PRESET)

demo: build
	exec $(BUILD)/bin/fourierkv-demo

test: build
	ctest --preset $(PRESET) -j "$$(nproc)"

asan tsan:
	$(MAKE) test PRESET=$@

# A minute each; for longer CMAKE_FLAGS=-DFOURIERKV_FUZZ_SECONDS=3600
fuzz:
	./bootstrap.sh clang-14 libclang-rt-14-dev
	$(MAKE) test PRESET=$@

bench: build
	$(BUILD)/bin/codec_bench --output table

format:
	git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format-14 -i

clean:
	rm -rf build
