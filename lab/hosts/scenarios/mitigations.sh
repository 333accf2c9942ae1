# about: The host defends itself against faults of its CPU, and says how guests are kept out.
# host: mitigations=auto
# cpus: 1
# memory: 768
# in test: svm, vmx
# also on vmx: vmentry_l1d_flush=always
# also on vmx: vmentry_l1d_flush=never
# timeout: 300
# needs: runner

faults=/sys/devices/system/cpu/vulnerabilities
grep . $faults/*

# says NAME PATTERN: the kernel's line on that fault.
says() { grep -q "$2" $faults/$1 || { echo "$1: $(cat $faults/$1), not $2"; return 1; }; }
silent() { ! grep -q "VMX:" $faults/l1tf || { echo "l1tf: $(cat $faults/l1tf)"; return 1; }; }
unknown_word() { ! insmod /lab/exitless.ko vmentry_l1d_flush=sometimes; }

# The lab's Intel CPU has L1TF and cannot flush its L1 cache by IA32_FLUSH_CMD.
case "$PARAMS" in
*always*) flush="cache flushes" ;;
*never*) flush="vulnerable" ;;
*) flush="conditional cache flushes" ;;
esac

check load load_module
[ $VENDOR = intel ] && check l1tf says l1tf "VMX: $flush"
# Stock KVM is in VMX operation while there is a VM only, and the line is about such times.
[ $VENDOR = intel ] && [ $MODULE = exitless ] && check itlb_multihit says itlb_multihit "KVM: Mitigation: Split huge pages"
check runner runner run cpuid/ pio/ msr/ exc/ timer/
check unused wait_unused 5
check unload unload_module
[ $VENDOR = intel ] && check l1tf_unloaded silent
[ $VENDOR = intel ] && [ $MODULE = exitless ] && check unknown_word unknown_word
true
