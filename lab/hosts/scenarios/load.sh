# about: The module loads, offers /dev/kvm, keeps the other KVM out and unloads.
# cpus: 1 2
# memory: 512
# in test: svm, vmx, ryzen 1
# timeout: 60

check load load_module
check listed grep -q "^$MODULE " /proc/modules
# The other module's vendor part must not begin: it would register with perf a second time, of which the kernel warns.
refused() {
    insmod /modules/kvm.ko || return 1
    insmod /modules/kvm-$VENDOR.ko 2>/tmp/refused && { echo "both are loaded"; return 1; }
    rmmod kvm || return 1
    grep -q "busy" /tmp/refused || { cat /tmp/refused; return 1; }
}
[ "$MODULE" = kvm ] || check refused refused
check unload unload_module
# Asked for what no CPU of the lab has: says why not, and goes on without.
avic() {
    PARAMS=avic=1
    load_module && unload_module && dmesg | grep -q "avic=1 has no effect"
}
[ "$MODULE" = kvm ] || check avic avic
