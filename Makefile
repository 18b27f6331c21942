# make demo | test | bench | lint        as root on Debian 12; nothing is asked, nothing is done twice
#
#   make demo [KEEP=1]   a signed HEP image in a real guest, under a real Slurm on this machine; KEEP=1 leaves it up
#   make demo-stop       stop what a kept demo left running          make clean-demo   remove all it ever made
#   make test            everything: lint, unit, golden, contract, real Slurms with real guests on QEMU, Xen and KVM
#   make test-unit       what needs no program and no root           make test-slurm   the real Slurm only
#   make test-gridengine the real Grid Engine only             make test-torque  a real Torque, where one is on PATH
#   make test-openpbs    the OpenPBS that runs on this host
#   make test-xen        a real Xen host, emulated, and real jobs on it only
#   make xen-node        build and boot that Xen host; `make xen-node-stop` ends it      (docs/xen.md)
#   make test-systemd    a real node with systemd, cgroup v2 and KVM, emulated, and real jobs on it only
#   make systemd-node    build and boot that node; `make systemd-node-stop` ends it      (docs/confinement.md)
#   make fuzz [FUZZ=20]  each parser of foreign bytes for so many seconds, on bytes that are nearly right
#   make soak [JOBS=200] [SEED=N] [SLICE=A:B]   real jobs with random faults from a printed seed; ends with nothing left
#   make deb             the Debian package, in build/deb
#   make man             the manual pages, in build/man
#   make pages           docs/troubleshooting.md anew, from the source and manual/codes.txt
#   make bench           the speed goals, as ratios: build/bench/results.json
#   make figure3         what payloads cost under Xen, in instructions: build/figure3           (docs/figure3.md)

SHELL := /bin/sh
PYTHON := .venv/bin/python
STAMPS := build/stamps
KEEP ?=
FUZZ ?= 20
JOBS ?= 200
SEED ?=

.PHONY: all demo demo-stop clean-demo xen-node xen-node-stop systemd-node systemd-node-stop test test-unit test-slurm test-gridengine test-torque test-openpbs test-xen test-systemd fuzz bench soak figure3 deb man pages lint format prerequisites programs clean

all: prerequisites

demo: prerequisites
	@$(PYTHON) -m demo.run $(if $(KEEP),--keep)

demo-stop: $(STAMPS)/venv
	@$(PYTHON) -m demo.gridengine stop
	@$(PYTHON) -m demo.cluster stop

clean-demo: $(STAMPS)/venv
	@$(PYTHON) -m demo.gridengine stop
	@$(PYTHON) -m demo.xen_cluster remove
	@$(PYTHON) -m demo.systemd_cluster remove
	@$(PYTHON) -m demo.cluster remove

xen-node: prerequisites
	@$(PYTHON) -m demo.xen_cluster start

xen-node-stop: $(STAMPS)/venv
	@$(PYTHON) -m demo.xen_cluster stop

systemd-node: prerequisites
	@$(PYTHON) -m demo.systemd_cluster start

systemd-node-stop: $(STAMPS)/venv
	@$(PYTHON) -m demo.systemd_cluster stop

test: prerequisites
	@$(PYTHON) -m tests.everything

test-unit: $(STAMPS)/venv
	$(PYTHON) -m pytest lrms_vm tests --ignore=tests/integration --ignore=tests/contract

test-slurm: prerequisites
	$(PYTHON) -m pytest tests/integration/slurm

test-gridengine: prerequisites
	$(PYTHON) -m pytest tests/integration/gridengine

# opt-in: Torque is not packaged, so `make test` has its recorded calls only
test-torque: prerequisites
	LRMS_VM_TEST_TORQUE=1 $(PYTHON) -m pytest tests/integration/torque

# the same for OpenPBS: one that runs on this host
test-openpbs: prerequisites
	LRMS_VM_TEST_OPENPBS=1 $(PYTHON) -m pytest tests/integration/openpbs

# the whole node in software emulation: no hardware virtualisation needed
test-xen: prerequisites
	$(PYTHON) -m pytest tests/integration/xen

test-systemd: prerequisites
	$(PYTHON) -m pytest tests/integration/systemd

fuzz: $(STAMPS)/venv
	@$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[fuzz]'
	@$(PYTHON) -W ignore -m tests.fuzz --seconds $(FUZZ)

bench: prerequisites
	@$(PYTHON) -m bench

# 16 minutes of processor time, two emulated machines at a time; what was booted is kept, so a second run goes on
figure3: prerequisites
	@$(PYTHON) -m figure3

# opt-in, hours for many jobs: the same seed makes the same plan
soak: prerequisites
	@$(PYTHON) -m tests.soak --jobs $(JOBS) $(if $(SEED),--seed $(SEED)) $(if $(SLICE),--slice $(SLICE))

deb: prerequisites man
	@packaging/build_deb build/deb

man: $(STAMPS)/venv
	@$(PYTHON) -m manual man build/man

pages: $(STAMPS)/venv
	@$(PYTHON) -m manual pages

lint: $(STAMPS)/venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy -p lrms_vm -p demo -p manual

format: $(STAMPS)/venv
	$(PYTHON) -m ruff format .

# -- what the rest needs

prerequisites: $(STAMPS)/apt $(STAMPS)/venv programs

$(STAMPS)/apt: apt-packages.txt demo/prerequisites.sh
	@demo/prerequisites.sh apt-packages.txt
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: setup.cfg pyproject.toml | $(STAMPS)/apt
	@test -x $(PYTHON) || /usr/bin/python3 -m venv .venv
	@echo "python: installing what setup.cfg asks for into .venv"
	@.venv/bin/pip install -q --disable-pip-version-check -e '.[test,demo,drmaa]'
	@mkdir -p $(@D) && touch $@

# the guest's half and the SPANK plugin: their own Makefiles know when nothing is to be done
programs: $(STAMPS)/apt
	@for part in $(patsubst %/Makefile,%,$(wildcard guest/Makefile spank/Makefile)); do \
	    $(MAKE) --silent --no-print-directory -C $$part || exit 1; done

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	@for part in $(patsubst %/Makefile,%,$(wildcard guest/Makefile spank/Makefile)); do \
	    $(MAKE) --no-print-directory -C $$part clean; done
