# about: Guests that run on stock KVM are saved, the module is exchanged for Exitless, and they go on there; and back: no timer and no IPI is lost or comes twice.
# cpus: 2
# memory: 768
# timeout: 200
# needs: runner
# modules: exitless
# in test: svm, vmx

# As for the runner's --swap: nothing of a VM is left, so the module can go.
cat >/tmp/swap.sh <<'END'
. /lab/env
. /lab/lib.sh
if [ -d /sys/module/exitless ]; then other=kvm; else MODULE=kvm other=exitless; fi
wait_unused 10 && unload_module || exit 1
echo $other >>/tmp/swaps
MODULE=$other
[ $MODULE = exitless ] || PARAMS=
load_module
END
moved() { runner run --swap "sh /tmp/swap.sh" move/; }
stock() { MODULE=kvm PARAMS='' "$@"; }
check load stock load_module
check moved moved
check unused stock wait_unused 5
check unload stock unload_module
arrived() { sort /tmp/swaps | uniq -c; [ "$(grep -c exitless /tmp/swaps)" -ge 4 ] && [ "$(grep -c kvm /tmp/swaps)" -ge 4 ]; }
check arrived arrived
