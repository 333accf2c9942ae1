# about: The ioctls of /dev/kvm, one by one.
# cpus: 2
# memory: 1024
# in test: svm, vmx
# timeout: 300
# needs: suite

check load load_module
check suite suite run
check unused wait_unused 5
check unload unload_module
