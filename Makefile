# xctl: `make help` lists the tasks.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

ifeq ($(V),1)
  Q :=
  say := @:
else
  Q := @
  say := @printf '  %-8s %s\n'
endif

PREFIX ?= /usr/local
DESTDIR ?=
# These two are not for the makefiles of the C libraries that cargo builds: they would install there.
unexport PREFIX DESTDIR
MAKEOVERRIDES := $(filter-out PREFIX=% DESTDIR=%,$(MAKEOVERRIDES))
CLANG ?= clang
LLVM_STRIP ?= llvm-strip
CARGO ?= cargo
BTF ?= /sys/kernel/btf/vmlinux
# Those that take longest come first.
KERNELS ?= newest 5.10 6.12 6.12-arm64 6.1 6.12-rt

# The target, as Rust names the machine and as libbpf's bpf_tracing.h does. The C library in it is musl where Rust has a
# standard library for that, which `make setup` asks rustup for; glibc makes the binary a third larger.
ARCH ?= $(shell uname -m)
LIBC ?= $(if $(wildcard $(shell $${RUSTC:-rustc} --print target-libdir --target $(ARCH)-unknown-linux-musl)),musl,gnu)
TRIPLE := $(ARCH)-unknown-linux-$(LIBC)
BPF_ARCH := $(patsubst x86_64,x86,$(patsubst aarch64,arm64,$(ARCH)))
HOST_ARCH := $(shell uname -m)
ifneq ($(ARCH),$(HOST_ARCH))
  CROSS := $(ARCH)-linux-gnu-gcc
  export CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_LINKER := $(CROSS)
endif

BUILD := target/$(TRIPLE)/release
BIN := $(BUILD)/xctl
BPF_OBJECT ?= target/bpf/$(ARCH)/xctl.bpf.o
RUST_SOURCES := $(shell find loader -name '*.rs' -o -name '*.ld') $(wildcard Cargo.* loader/Cargo.toml loader/object/Cargo.toml .cargo/config.toml scripts/rustc)
BPF_SOURCES := $(wildcard bpf-src/*.c bpf-src/*.h) vmlinux/vmlinux.h

##@ Build and run

.PHONY: all
all: $(BIN) ## Build target/<machine>/release/xctl, one static binary (default)

$(BIN): $(RUST_SOURCES) $(BPF_SOURCES) Makefile
	$(say) CARGO $@
	$(Q)./scripts/need $(CARGO) $(CLANG) $(LLVM_STRIP) libbpf-headers autotools $(CROSS) $(LIBC)-$(ARCH)
	$(Q)$(CARGO) build --release --locked $(if $(Q),--quiet) --target $(TRIPLE)
	$(Q)touch $@

.PHONY: bpf
bpf: $(BPF_OBJECT) ## Build the BPF object alone

# The one recipe for the object; loader/build.rs calls it too. -g for BTF; what else DWARF says is stripped, and so is
# what only a linker would read: labels of basic blocks, and where .BTF and .BTF.ext mention sections. mcpu=v2 lacks
# nothing we use and is the oldest that 5.2 kernels' verifier tracks well.
BPF_CFLAGS := -target bpf -mcpu=v2 -O2 -g -D__TARGET_ARCH_$(BPF_ARCH) -Ivmlinux -Ibpf-src \
	-Wall -Wextra -Werror -Wno-unused-parameter -fdebug-prefix-map=$(CURDIR)=. $(EXTRA_BPF_CFLAGS)

$(BPF_OBJECT): $(BPF_SOURCES) Makefile
	$(say) CLANG $@
	$(Q)./scripts/need $(CLANG) $(LLVM_STRIP) libbpf-headers
	$(Q)mkdir -p $(@D)
	$(Q)$(CLANG) $(BPF_CFLAGS) -c bpf-src/xctl.bpf.c -o $@
	$(Q)$(LLVM_STRIP) -g -w -N 'LBB*' -R .rel.BTF -R .rel.BTF.ext $@

# A program for the tests, in C; tests/ways/build.rs calls this.
WAYS ?= target/ways/$(ARCH)/ways
.PHONY: ways
ways: $(WAYS)

$(WAYS): tests/ways/ways.c Makefile
	$(say) CC $@
	$(Q)mkdir -p $(@D)
	$(Q)$(or $(CROSS),cc) -std=gnu11 -O1 -static -Wall -Wextra -Werror -o $@ $<

.PHONY: vmlinux
vmlinux: $(BIN) ## Write vmlinux/vmlinux.h from kernel BTF (BTF=FILE: not this kernel's)
	$(say) BTF vmlinux/vmlinux.h
	$(Q)$(BIN) btf --btf $(BTF) --list vmlinux/types.list > target/vmlinux.h
	$(Q)cmp -s target/vmlinux.h vmlinux/vmlinux.h || cp target/vmlinux.h vmlinux/vmlinux.h

.PHONY: setup setup-test
setup: ## Install what building needs (apt-get or dnf; does nothing if all is there)
	$(Q)./scripts/setup build

setup-test: setup ## ... and what testing needs
	$(Q)./scripts/setup test $(if $(filter %-arm64,$(KERNELS)),aarch64)

.PHONY: run trace
run: setup ## Set up, build, and trace this host (ARGS='--json ...')
	$(Q)exec $(MAKE) --no-print-directory trace

# A new make, since what was installed may change what is built.
trace: $(BIN)
	$(Q)exec $(BIN) trace $(ARGS)

.PHONY: demo
demo: setup ## Show xctl at work for SECONDS (10), on a link that loses segments (root)
	$(Q)./scripts/setup demo
	$(Q)$(MAKE) --no-print-directory $(BIN)
	$(Q)./scripts/demo $(BIN) $(SECONDS)

.PHONY: demo-svg
demo-svg: $(BIN) ## Record the demonstration for the README: docs/demo.svg and docs/demo-report.svg (root)
	$(Q)./scripts/setup demo-svg
	$(Q)./scripts/demo-svg $(BIN) docs

.PHONY: install
install: $(BIN) ## Install the binary, man pages, completions, systemd units and changelog (PREFIX, DESTDIR)
	$(Q)$(CARGO) build --profile quick --locked --quiet --target $(HOST_ARCH)-unknown-linux-$(LIBC) --example docs
	$(say) INSTALL $(DESTDIR)$(PREFIX)
	$(Q)./dist/parts $(BIN) target/$(HOST_ARCH)-unknown-linux-$(LIBC)/quick/examples/docs target/parts
	$(Q)./dist/install target/parts '$(DESTDIR)' '$(PREFIX)'

##@ Test

# Before the rest: it compares our CO-RE results with libbpf's for the types of every kernel.
.PHONY: test test-unit test-native test-vm test-full test-awake
test: setup-test ## Set up, build, and run the unit tests and the kernel tests
	$(say) FETCH '$(KERNELS)'
	$(Q)./tests/vm/fetch $(KERNELS)
	$(Q)XCTL_KERNELS='$(KERNELS)' $(MAKE) --no-print-directory test-unit
	$(Q)$(call at_once,test-native)

# Tests compile with the profile of the inner loop; what they run is $(BIN), which ships.
CARGO_TEST = $(CARGO) test --profile quick --locked --target $(TRIPLE)

test-unit: $(BIN) ## Tests that need neither privilege nor a kernel of their own
	$(say) TEST size
	$(Q)./tests/size $(BIN)
	$(say) TEST docs
	$(Q)./tests/docs $(BIN)
	$(say) TEST unit
	$(Q)XCTL=$(CURDIR)/$(BIN) $(CARGO_TEST) --lib --bins --test cli --test relocations --test report --test seeds
	$(Q)$(CARGO_TEST) --doc --package bpf-object

# The same executable natively and in the virtual machines; cargo alone knows its name.
kernel_test = $$($(CARGO_TEST) --no-run --test kernel 2>&1 | tee -a /dev/stderr | sed -n 's/.*Executable.*(\(.*\))$$/\1/p')

test-native: $(BIN) ## Tests on this machine's kernel
	$(say) TEST native
	$(Q)mkdir -p target/vm; XCTL=$(CURDIR)/$(BIN) $(kernel_test) $(CASES) | tee target/vm/native.out
	$(if $(CASES),,$(Q)./tests/dist/service $(BIN) && ./tests/dist/journal $(BIN))

# As many at a time as there are cores. tests/kernel/machine.rs says which cases run on which machine; CASES names cases, which
# run in every set of hooks, and CASES=--all means all. The 4 CPUs of one machine come and go under load.
VM_RUNS = $(KERNELS:%=vm-%) $(if $(filter-out --all,$(CASES)),,$(if $(filter 6.12,$(KERNELS)),vm-4cpus))
AT_ONCE ?= $$(nproc)
define at_once
	mkdir -p target/vm; rm -f target/vm/*.out; \
	failed=0; printf '%s\n' $1 $(VM_RUNS) | xargs -P $(AT_ONCE) -n 1 $(MAKE) --no-print-directory || failed=1; \
	grep -H '^once' target/vm/*.out || true; \
	[ $$failed = 0 ] || \
		{ grep -H '^FAIL' target/vm/*.out || echo 'No case failed; a virtual machine or the runner did: see "result" above.'; false; }
endef

test-vm: $(BIN) ## Tests on real Debian kernels in virtual machines (KERNELS='6.1 6.12-arm64', CASES)
	$(Q)$(call at_once)

.PHONY: $(VM_RUNS)
$(KERNELS:%=vm-%): vm-%:
	$(Q)$(MAKE) --no-print-directory test-vm-one ARCH=$(if $(filter %-arm64,$*),aarch64,x86_64) VM='$*' VM_CASES="$(CASES)"

vm-4cpus:
	$(Q)VM_CPUS=4 VM_LABEL=-4cpus $(MAKE) --no-print-directory test-vm-one ARCH=x86_64 VM=6.12

.PHONY: test-vm-one
test-vm-one:
	$(Q)if said=$$(./scripts/need $(LIBC)-$(ARCH) 2>&1); then $(MAKE) --no-print-directory test-vm-here; \
	else echo "[$(VM)] skip: $$said"; fi

.PHONY: test-vm-here
test-vm-here: $(BIN)
	$(say) TEST 'vm $(VM)$(VM_LABEL)'
	$(Q)XCTL=$(CURDIR)/$(BIN) TESTS=$(kernel_test) ./tests/vm/run -k $(VM) -- $(VM_CASES)

# What `make test` leaves out, since it takes hours: see docs/testing.md.
test-full: ## Every case in every set of hooks on every kernel, 20,000 connections, 1,000 starts; test-awake; test-reproducible
	$(Q)VM_TIMEOUT=$${VM_TIMEOUT:-7200} $(MAKE) --no-print-directory test CASES=--all
	$(Q)VM_MEM=3G VM_TIMEOUT=$${VM_TIMEOUT:-7200} VM_LABEL=-full $(MAKE) --no-print-directory test-vm CASES='--full churn full_map cycles short_connections verify_ledger_starts contended_fd metrics_owners totals_that_last'
	$(Q)$(MAKE) --no-print-directory test-awake
	$(Q)$(MAKE) --no-print-directory test-awake VMS=6.12
	$(Q)$(MAKE) --no-print-directory test-reproducible

test-awake: $(BIN) ## Do the cases fail without the hooks that they are about? On this machine's kernel; VMS=6.12: on that one
	$(if $(VMS),$(Q)VM_LABEL=-awake $(MAKE) --no-print-directory test-vm KERNELS='$(VMS)' CASES=--awake,$(Q)$(MAKE) --no-print-directory test-native CASES=--awake)

# Coverage-guided, of every parser of untrusted bytes. Findings go to fuzz/artifacts, and from there, once they are
# fixed, to fuzz/seeds, which `make test` reads. The corpus grows in target/fuzz. Five seconds for an input, and memory
# that is out of proportion, are findings too. (ASan keeps what was freed for a while: that is not the reader's.)
FUZZ_TARGETS ?= elf btf btf_ext resolver accesses definitions
MINUTES ?= 30
.PHONY: fuzz
fuzz: setup $(BPF_OBJECT) ## Fuzz the readers, MINUTES each (FUZZ_TARGETS)
	$(Q)./scripts/setup fuzz
	$(Q)for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/$$target; \
		[ $$target != elf ] || cp $(BPF_OBJECT) target/fuzz/elf/; \
		RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=quarantine_size_mb=8:detect_leaks=0 \
		target/tools/bin/cargo-fuzz fuzz run --target-dir target/fuzz-build $$target target/fuzz/$$target fuzz/seeds/$$target -- \
			-max_total_time=$$(($(MINUTES) * 60)) -timeout=5 -rss_limit_mb=384 -malloc_limit_mb=64 -max_len=1048576 -print_final_stats=1; \
	done

# The inner loop. Its profile leaves out what makes a release slow to build: optimizing across crates.
.PHONY: quick
quick: ## Formatting, lints and unit tests of the Rust code: the inner loop
	$(say) QUICK 'fmt, clippy, unit tests'
	$(Q)$(CARGO) fmt --check
	$(Q)$(CARGO) clippy --profile quick --locked --quiet --all-targets --target $(TRIPLE) -- -D warnings
	$(Q)$(CARGO) test --profile quick --locked --quiet --target $(TRIPLE) --lib --test cli --test report --test seeds

.PHONY: check fmt audit ci
check: ## Formatting, floors and lints, warnings as errors
	$(say) CHECK fmt
	$(Q)$(CARGO) fmt --check
	$(say) CHECK floors
	$(Q)./scripts/floors
	$(say) CHECK clippy
	$(Q)$(CARGO) clippy --profile quick --locked --quiet --all-targets --target $(TRIPLE) -- -D warnings
	$(say) CHECK 'format of bpf-src'
	$(Q)./scripts/format

fmt: ## Format the Rust code
	$(Q)$(CARGO) fmt

# The advisories are in a database on the network; without it the rest is still checked.
audit: ## Licences, sources, duplicates and known holes of all dependencies (deny.toml)
	$(Q)./scripts/setup audit
	$(Q)target/tools/bin/cargo-deny --locked check licenses bans sources
	$(Q)if target/tools/bin/cargo-deny --locked fetch db; then target/tools/bin/cargo-deny --frozen check advisories; \
	else echo 'advisories NOT CHECKED: their database cannot be reached'; fi

ci: setup-test ## What continuous integration runs
	$(Q)$(MAKE) --no-print-directory check
	$(Q)$(MAKE) --no-print-directory test
	$(Q)$(MAKE) --no-print-directory test-corpus
	$(Q)$(MAKE) --no-print-directory test-store test-demo test-top test-fleet
	$(Q)$(MAKE) --no-print-directory bench-start bench-inspect
	$(Q)$(MAKE) --no-print-directory bench-vm KERNELS='$(filter 6.12,$(KERNELS))'
	$(Q)$(MAKE) --no-print-directory test-dist

##@ Measure

# The sets of hooks that bench-vm-send compares.
SETS ?= kprobe kprobe+tracepoint fentry lsm tracepoint

# The set that auto takes: what auto tries before it is not part of the comparison.
ATTACH ?= $(shell $(BIN) doctor | sed -n 's/^--attach auto takes //p')

# Compiled and linked as xctl is: with the musl that Rust brings, or the system's glibc.
ifeq ($(LIBC),musl)
  SELF_CONTAINED = $(shell $${RUSTC:-rustc} --print target-libdir --target $(TRIPLE))/self-contained
  BENCH_CC = scripts/musl/$(ARCH)-linux-musl-cc -nostdlib $(SELF_CONTAINED)/crt1.o $(SELF_CONTAINED)/crti.o
  BENCH_LIBC = $(SELF_CONTAINED)/libc.a -lgcc $(SELF_CONTAINED)/crtn.o
else
  BENCH_CC = $(CC)
endif

.PHONY: test-corpus test-store test-demo test-top test-fleet bench bench-sockets bench-start bench-bpftrace bench-reader bench-inspect bench-send bench-call bench-churn bench-storm bench-ledger bench-vm bench-vm-send
# A C program with the libbpf that xctl is linked with.
define with_libbpf
	$(say) CC $@
	$(Q)libbpf=$$(ls -td $(BUILD)/build/libbpf-sys-*/out | head -n 1); \
	$(BENCH_CC) -O2 -Wall -Wextra -D_GNU_SOURCE -static -I"$$libbpf/include" $< -o $@ "$$libbpf"/lib{bpf,elf,z}.a $(BENCH_LIBC)
endef

$(addprefix target/bench-,start reader send call churn sets ledger): target/bench-%: tests/bench/%.c $(wildcard tests/bench/*.h) bpf-src/events.h $(BIN)
	$(with_libbpf)

target/corpus-load: tests/corpus/load.c $(BIN)
	$(with_libbpf)

test-corpus: $(BIN) target/corpus-load ## xctl's verdict on objects of other people's packages beside what libbpf does with them (root)
	$(say) FETCH corpus
	$(Q)./tests/corpus/fetch
	$(say) TEST corpus
	$(Q)./tests/corpus/run $(BIN) target/corpus-load

test-store: $(BIN) ## The statements of docs/store.md with DuckDB and ClickHouse, on the records of a run over a lossy link (root)
	$(Q)./scripts/setup store
	$(say) TEST store
	$(Q)./tests/store $(BIN)

test-demo: $(BIN) ## What `make demo` shows (root)
	$(Q)./scripts/setup demo-svg
	$(Q)./scripts/setup bpftrace
	$(say) TEST demo
	$(Q)./tests/demo $(BIN)

test-top: $(BIN) ## The screen of `xctl top` in tmux, at three sizes and with up to 5,000 processes (root)
	$(Q)./scripts/setup demo-svg
	$(say) TEST top
	$(Q)./tests/top $(BIN)

test-fleet: $(BIN) ## The metrics of a run over a lossy link in Prometheus, with the rules and the dashboard's queries (root)
	$(Q)./scripts/setup fleet
	$(say) TEST fleet
	$(Q)./tests/fleet $(BIN)

bench: ## All benchmarks of this machine, and one table of them, also as target/bench.json; wants an idle machine
	$(Q)rm -f target/bench.json
	$(Q)failed=0; for what in start bpftrace reader send call churn storm ledger sockets inspect; do \
		BENCH_ROWS=$(CURDIR)/target/bench.json $(MAKE) --no-print-directory bench-$$what || failed=1; \
	done; ./tests/bench/table target/bench.json; exit $$failed

bench-start: $(BIN) $(BPF_OBJECT) target/bench-start ## Time to start against libbpf alone, and memory, with the hooks of ATTACH; fails beyond the budget
	$(say) BENCH start
	$(Q)target/bench-start $(BIN) $(BPF_OBJECT) 25 --attach $(ATTACH)

bench-bpftrace: $(BIN) ## Time to start and memory beside bpftrace, if that is installed (root)
	$(say) BENCH bpftrace
	$(Q)./scripts/with-tracefs ./tests/bench/bpftrace $(BIN) 15 --attach $(ATTACH)

bench-reader: $(BIN) $(BPF_OBJECT) target/bench-reader ## A million events and more beside libbpf's own reader: losses, CPU time, latency; wants an idle machine
	$(say) BENCH reader
	$(Q)target/bench-reader $(BIN) $(BPF_OBJECT) 5 --attach $(ATTACH)

bench-sockets: $(BIN) ## Time to list 1,000 to 100,000 sockets beside ss, and to start with them (root)
	$(say) BENCH sockets
	$(Q)./tests/bench/sockets $(BIN)

target/hostile/make: tests/hostile.rs
	$(say) RUSTC $@
	$(Q)mkdir -p $(@D)
	$(Q)$${RUSTC:-rustc} --edition 2024 -O -o $@ $<

bench-inspect: $(BIN) target/hostile/make ## What inspect costs with objects of nearly a megabyte, made to be costly too; fails beyond the budget
	$(say) BENCH inspect
	$(Q)target/hostile/make target/hostile
	$(Q)./tests/bench/inspect $(BIN) $(CLANG) target/hostile

bench-send: $(BIN) target/bench-send ## What a send costs in xctl's programs, beside an empty program, with the hooks of ATTACH (6.3 or newer, root)
	$(say) BENCH send
	$(Q)target/bench-send 25 $(BIN) trace --json --attach $(ATTACH)

bench-call: $(BIN) target/bench-call ## Time of send() with nothing, with xctl and with bpftrace, on one CPU and on all (root)
	$(say) BENCH call
	$(Q)./scripts/with-tracefs target/bench-call 25 $(BIN) trace --json --attach $(ATTACH)

bench-churn: $(BIN) target/bench-churn ## Connections a second with nothing, with xctl and with bpftrace, on one CPU and on all (root)
	$(say) BENCH churn
	$(Q)./scripts/with-tracefs target/bench-churn 25 $(BIN) trace --json --attach $(ATTACH)

bench-storm: $(BIN) ## As many retransmits as the kernel can do, with nothing, with xctl and with bpftrace: rate, delays, losses, totals (root, nft)
	$(say) BENCH storm
	$(Q)./scripts/with-tracefs ./tests/bench/storm 5 $(BIN) --attach $(ATTACH)

bench-ledger: $(BPF_OBJECT) target/bench-ledger ## What the ledger costs at a change of state, at an end, and for each open socket at a tick (root)
	$(say) BENCH ledger
	$(Q)target/bench-ledger $(BPF_OBJECT) 2000

bench-vm: $(BIN) $(BPF_OBJECT) target/bench-start ## Time to start and memory with kprobes, on Debian kernels in virtual machines (KERNELS='6.12')
	$(Q)XCTL=$(CURDIR)/$(BIN) TESTS=$(CURDIR)/target/bench-start KERNELS='$(filter-out %-arm64,$(KERNELS))' VM_LABEL=-bench \
	./tests/vm/run -f $(CURDIR)/$(BPF_OBJECT) -- /usr/bin/xctl /tests/xctl.bpf.o 15 --attach kprobe+tracepoint

bench-vm-send: $(BIN) target/bench-sets ## Instructions of a send in each set of hooks, on a Debian kernel in a virtual machine (KERNELS='6.12'); fails if they do not repeat
	$(Q)XCTL=$(CURDIR)/$(BIN) TESTS=$(CURDIR)/target/bench-sets KERNELS='$(KERNELS)' VM_LABEL=-bench-send VM_ACCEL=icount VM_CPUS=1 \
	./tests/vm/run -- /usr/bin/xctl 20000 $(SETS)

##@ Ship

# What is given away: a tarball for each machine, and their sums.
DIST_ARCHS ?= x86_64 aarch64
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: setup-dist dist test-dist test-reproducible
setup-dist: setup ## Install what `make dist` needs
	$(Q)./scripts/setup dist $(DIST_ARCHS)

dist: setup-dist ## Tarballs, deb, rpm, apk and a container image for x86_64 and aarch64, in target/dist (DIST_ARCHS, MAINTAINER, MINISIGN_KEY)
	$(Q)for arch in $(DIST_ARCHS); do $(MAKE) --no-print-directory all ARCH=$$arch LIBC=musl; done
	$(say) CARGO 'man pages, completions'
	$(Q)$(CARGO) build --profile quick --locked $(if $(Q),--quiet) --target $(HOST_ARCH)-unknown-linux-musl --example docs
	$(Q)rm -rf target/dist
	$(Q)for arch in $(DIST_ARCHS); do $(if $(Q),printf '  %-8s %s\n' PACK $$arch;) ./dist/pack $$arch $(VERSION); ./dist/packages $$arch $(VERSION); done
	$(say) PACK image
	$(Q)./dist/image $(VERSION) target/dist $(DIST_ARCHS)
	$(Q)./dist/sums target/dist

# Each run makes a new Debian: target/debian.tar.
test-dist: dist ## Check what is in target/dist, and what `make install` installs (root for all of it)
	$(say) TEST dist
	$(Q)rm -f target/debian.tar
	$(Q)./tests/dist/contents $(DIST_ARCHS)
	$(Q)./tests/dist/install
	$(Q)./tests/dist/packages $(DIST_ARCHS)
	$(Q)./tests/dist/newcomer
	$(Q)./tests/dist/boot
	$(Q)./tests/dist/image $(DIST_ARCHS)

test-reproducible: setup-dist ## Build all that twice, in two places: is it the same to the byte? (takes a while)
	$(say) TEST reproducible
	$(Q)./tests/dist/reproducible '$(DIST_ARCHS)'

# BTF for kernels that have none of their own: files of BTF, vmlinux images, or kernels that tests/vm has fetched.
KERNEL_CACHE := $(or $(XCTL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/xctl)/kernels
.PHONY: btf-min
btf-min: $(BIN) ## Cut kernels' BTF down to what xctl needs, into target/btf-min (KERNELS='FILE...')
	$(Q)mkdir -p target/btf-min
	$(Q)for kernel in $(KERNELS); do \
		file=$$kernel; \
		[ -f "$$file" ] || file=$(KERNEL_CACHE)/$$kernel/vmlinux.btf; \
		[ -f "$$file" ] || { echo "xctl: no file $$kernel, and no kernel of that name in $(KERNEL_CACHE) (tests/vm/fetch)" >&2; exit 1; }; \
		name=$${kernel#/} name=$${name%.btf}; \
		$(BIN) btf --min "target/btf-min/$${name//\//-}.btf" --btf "$$file"; \
	done

.PHONY: clean
clean: ## Remove what was built
	$(Q)rm -rf target

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^##@ / { print (n++ ? "\n" : "") substr($$0, 5) } \
		/^[a-z][a-z -]*:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
