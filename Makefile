# The two commands are `make run` and `make test`; the others are for development. See README.md.

IMAGE_DIR := $(or $(BULKHEAD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bulkhead)/run-image
TARGET := $(or $(CARGO_TARGET_DIR),target)
BULKHEAD := $(TARGET)/release/bulkhead
# Seconds for each fuzz target.
FUZZ_SECONDS := 60
# Packages with `unsafe`.
SANITIZED := --package devices --package vmm

.PHONY: run test build install kernel image bench fuzz fuzz-long sanitize deny clean

# Install what is missing, build everything, make a Debian image, run a command of it in a microVM of its own.
run: build kernel image
	$(BULKHEAD) doctor
	$(BULKHEAD) run --rm --verbose oci-archive:$(IMAGE_DIR)/debian.tar \
	    sh -c 'echo "Hello from $$(. /etc/os-release; echo "$$PRETTY_NAME") on Linux $$(uname -r), $$(nproc) CPU"'

# Everything that is checked, on this machine's KVM and on an emulated AMD-V host. The last line counts.
test:
	tests/install test
	tests/run

build: install
	.cargo/product

install:
	tests/install

# The guest kernel for the kind of KVM that this host has.
kernel: build
	guest-images/kernel/build.sh --flavour "$$($(BULKHEAD) doctor --format json | jq -r 'if .kvm.kind == "software-nested" then "nested" else "hardware" end')"

image: install
	tests/images/debian.sh $(IMAGE_DIR)

# The cost of a microVM that does nothing, and of one that goes on from a snapshot; and VMs beside containers, which leaves a page and
# a result in the target directory. Some minutes.
bench: build kernel image
	$(BULKHEAD) bench null -n 500
	$(BULKHEAD) bench restore -n 200
	$(BULKHEAD) bench compare --budget 40 --out $(TARGET)/bench.json --html $(TARGET)/bench.html oci-archive:$(IMAGE_DIR)/debian.tar

# Each fuzz target for FUZZ_SECONDS.
fuzz:
	fuzz/run $(FUZZ_SECONDS)

# The same by night: an hour each, from what earlier nights have found, which is kept in fuzz/corpus.
fuzz-long:
	fuzz/run 3600

# The unit tests of what has `unsafe` in it with every access to memory checked (AddressSanitizer; by a stable toolchain, which calls
# that unstable).
sanitize:
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --target x86_64-unknown-linux-gnu --target-dir $(TARGET)/sanitize \
	    --locked --lib $(SANITIZED)

# Dependencies: known holes, licences, where they come from (deny.toml). Needs cargo-deny (`cargo install cargo-deny`).
deny:
	cargo deny --locked check

# Build products; not the caches of kernels and images.
clean:
	cargo clean
	rm -rf fuzz/target
