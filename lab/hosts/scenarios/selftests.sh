# about: The kernel's KVM selftests that matter for every change, against the table in docs/selftests.md.
# cpus: 2
# memory: 2048
# in test: svm, vmx
# timeout: 300
# needs: selftests

. /lab/selftests.sh
check load load_module
selftests A
check unused wait_unused 5
check unload unload_module
