# about: Micro guests: one instruction, one exit, one interrupt at a time.
# cpus: 1 2
# memory: 768
# in test: svm, vmx, ryzen 1
# also on vmx 1: apicv=0
# also on vmx 1: preemption_timer=0
# also on vmx 1: vpid=0
# also on vmx 1: pml=0
# timeout: 360
# needs: runner

check load load_module
check runner runner run
[ $MODULE = kvm ] || check ends runner run apf/ends_meanwhile
check unused wait_unused 5
check unload unload_module
