# about: Linux guests with exitless-guest.ko: on a host that offers no lazy deadlines, and on one that does.
# cpus: 2
# memory: 1024
# timeout: 300
# needs: guest exitless-guest load
# in test: svm

guest_extras
offer() { echo "0 $1lazy_deadline" >/dev/exitless; }
module() { GUEST_APPEND="exitless.state=$1" guest 2 module $2; }
check load load_module
# Where there is nothing the module says so and does nothing.
check nothing module no_Exitless_here 120
if [ $MODULE = exitless ]; then
    check offer offer +
    check offered module lazy_deadlines_on 120
    check withdraw offer -
fi
check unused wait_unused 5
check unload unload_module
