# about: The KVM selftests that take minutes: dirty logs, page tables, slots that come and go under running vCPUs.
# cpus: 2
# memory: 3072
# timeout: 1800
# needs: selftests
# in test: no

. /lab/selftests.sh
check load load_module
selftests B
check unused wait_unused 5
check unload unload_module
