# about: Lazy deadlines: a guest that moves its timer later without exits, and all that ends that.
# cpus: 2
# memory: 768
# timeout: 200
# needs: runner
# in test: svm, vmx

check load load_module
[ $MODULE = kvm ] || check offer sh -c 'echo "0 +lazy_deadline" >/dev/exitless'
check lazy runner run lazy/
[ $MODULE = kvm ] || check withdraw sh -c 'echo "0 -lazy_deadline" >/dev/exitless'
check not_offered runner run lazy/found
check unused wait_unused 5
check unload unload_module
