# Runs inside a throw-away virtual machine at build time, where a file system can be mounted without
# asking anything of the machine that builds: own the files by root, install the boot loader, power off.
PATH=/bin
export PATH
/bin/busybox --install -s /bin
mkdir -p /root
if mount -t ext4 /dev/vda /root && chown -R 0:0 /root &&
    ln -s /proc/mounts /etc/mtab && extlinux --install /root/boot && umount /root; then
    echo DURANOVA-INSTALLED >/dev/console
fi
sync
poweroff -f
