# about: The ioctls of /dev/kvm, one by one.
# cpus: 2
# memory: 1024
# in test: svm, vmx, ryzen
# timeout: 300
# needs: suite odd_pages

check load load_module
check odd_pages insmod /lab/odd_pages.ko
check suite suite run
check unused wait_unused 5
check remove rmmod odd_pages
check unload unload_module
