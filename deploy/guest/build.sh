#!/bin/bash
# Build the tiny guest out of the distribution's own packages: the kernel of its cloud flavour, busybox,
# dropbear and the QEMU guest agent on one ext4 file system that SeaBIOS boots from disk.
#   usage: build.sh [OUTDIR]     leaves tiny.qcow2, tiny.raw, vmlinuz and initrd there
# Nothing is installed here and no privilege is needed: packages are unpacked into a work directory,
# and the one step that needs a mounted file system (the boot loader) runs in a throw-away virtual machine.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${1:-$HERE/../../build/guest}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SIZE=72M

CMDLINE="root=/dev/vda console=tty0 console=ttyS0 quiet nokaslr mitigations=off random.trust_cpu=on \
no_timer_check tsc=reliable 8250.nr_uarts=1"
BOOT_MODULES="virtio_pci virtio_blk ext4 crc32c_generic"
ROOT_MODULES="virtio_net virtio_rng button evdev virtio_console virtio_balloon isofs i6300esb sr_mod \
ata_piix ahci sd_mod virtio_scsi e1000"

die() { echo "guest: $*" >&2; exit 1; }

inputs() { # what the image is made from; a new kernel in the archive does not make an old image wrong
    (cd "$HERE" && find . -type f | LC_ALL=C sort | xargs sha256sum) | sha256sum
}

kernel_package() { # the versioned package behind the distribution's name for its cloud kernel
    local meta
    meta=linux-image-cloud-amd64
    apt-cache show "$meta" >/dev/null 2>&1 || meta=linux-image-virtual
    apt-cache depends "$meta" 2>/dev/null | awk '/Depends: linux-image-[0-9]/ {print $2; exit}'
}

# Which packages the programs need, as apt itself would decide on an empty machine: name=version lines.
# Maintainer scripts never run here, so of what apt adds only libraries and kernel modules are kept.
resolve() {
    : >"$WORK/status"
    apt-get -s -o Dir::State::status="$WORK/status" --no-install-recommends install \
        "$@" 2>/dev/null | awk '$1 == "Inst" {v = $3; sub(/^\(/, "", v); print $2 "=" v}' |
        grep -E "^(lib|linux-modules-|$(printf '%s|' "$@")=)" |
        grep -Ev '^lib(perl|pam|ssl|semanage|db|gdbm|[a-z-]*-perl)'
}

fetch_packages() { # unpacks the listed packages below $WORK/x; keeps the downloads in $OUT/debs
    local kernel=$1 wanted name
    mkdir -p "$OUT/debs" "$WORK/x"
    wanted=$(resolve "$kernel" busybox-static dropbear-bin qemu-guest-agent e2fsprogs extlinux)
    [ -n "$wanted" ] || die "apt cannot resolve the guest's packages; run apt-get update"
    # apt's own sandbox user cannot write here, and saying so each time helps nobody
    (cd "$OUT/debs" && apt-get -q download $wanted >"$WORK/log" 2>&1) ||
        die "downloading packages failed: $(tail -n 1 "$WORK/log")"
    for name in $wanted; do
        dpkg-deb -x "$(deb_file "$name")" "$WORK/x"
    done
}

deb_file() { # the file apt-get download wrote for name=version (a colon becomes %3a)
    local file="$OUT/debs/${1%%=*}_${1#*=}"
    ls "${file//:/%3a}"_*.deb
}

# Copies the named modules with all they need, in loading order, to a directory, numbered and unpacked.
copy_modules() {
    local to=$1 number=10 file name
    shift
    for name in "$@"; do
        modprobe -d "$TREE" -S "$KERNEL" --show-depends "$name" 2>/dev/null || true
    done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r file; do
        name=$(basename "$file")
        number=$((number + 1))
        case $file in
            *.zst) zstd -q -d -c "$file" >"$to/$number-${name%.zst}" ;;
            *.xz) xz -d -c "$file" >"$to/$number-${name%.xz}" ;;
            *) cp "$file" "$to/$number-$name" ;;
        esac
    done
}

copy_program() { # a program and the shared libraries it loads, from the unpacked packages to a root
    local root=$1 name=$2 program loader
    program=$(find "$WORK/x" -type f -path "*bin/$name" | head -n 1)
    loader=$(find "$WORK/x" -name ld-linux-x86-64.so.2 | head -n 1)
    [ -n "$program" ] || die "the packages hold no $name"
    install -D -m 755 "$program" "$root/bin/$name"
    install -D -m 755 "$loader" "$root/lib64/ld-linux-x86-64.so.2"
    mkdir -p "$root/lib/x86_64-linux-gnu"
    "$loader" --library-path "$LIBRARIES" --list "$program" | awk '$3 ~ "^/" {print $3}' |
        xargs cp -L -t "$root/lib/x86_64-linux-gnu"
}

pack() { # a directory as an initramfs; uncompressed, since unpacking costs emulated time
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0)
}

make_initrd() { # the guest's own, and one that also holds what the installation needs
    local tree=$WORK/initrd
    mkdir -p "$tree"/{bin,dev,proc,sys,root,modules}
    cp "$BUSYBOX" "$tree/bin/busybox"
    ln -s busybox "$tree/bin/sh"
    install -m 755 "$HERE/initramfs-init" "$tree/init"
    copy_modules "$tree/modules" $BOOT_MODULES
    pack "$tree" >"$OUT/initrd"
    mkdir -p "$tree/etc"
    cp "$HERE/install.sh" "$tree/install.sh"
    copy_program "$tree" extlinux
    pack "$tree" >"$WORK/installer"
}

make_root() {
    local root=$WORK/root program applet
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,mnt,boot,etc/dropbear,var/log} \
        "$root/root/.ssh" "$root/lib/modules/$KERNEL"
    cp "$BUSYBOX" "$root/bin/busybox"
    for applet in $("$BUSYBOX" --list); do
        [ "$applet" = busybox ] || ln -sf /bin/busybox "$root/bin/$applet"
    done
    for applet in init poweroff reboot halt getty; do
        ln -sf /bin/busybox "$root/sbin/$applet"
    done
    for program in dropbear dropbearkey qemu-ga resize2fs; do copy_program "$root" "$program"; done
    copy_modules "$root/lib/modules/$KERNEL" $ROOT_MODULES
    (cd "$root/lib/modules/$KERNEL" && for file in *.ko; do mv "$file" "${file#*-}"; done)
    cp "$TREE/lib/modules/$KERNEL"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$KERNEL/"
    depmod -b "$root" "$KERNEL"
    cp -a "$HERE/root/." "$root/"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo 'root:*:19000:0:99999:7:::' >"$root/etc/shadow"
    echo /bin/sh >"$root/etc/shells"
    echo tiny >"$root/etc/hostname"
    chmod 600 "$root/etc/shadow"
    chmod 700 "$root/root" "$root/root/.ssh"
    cp "$OUT/vmlinuz" "$OUT/initrd" "$root/boot/"
    printf '%s\n' "DEFAULT guest" "PROMPT 0" "SERIAL 0 115200" "LABEL guest" " LINUX /boot/vmlinuz" \
        " INITRD /boot/initrd" " APPEND $CMDLINE" >"$root/boot/extlinux.conf"
}

# The file system covers the whole disk, so that growing it is one resize2fs. extlinux reads neither
# 64-bit nor checksummed ext4, and needs 4 KiB blocks.
make_disk() {
    truncate -s "$SIZE" "$1"
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -L duranova-root -b 4096 -I 256 \
        -O '^64bit,^metadata_csum,^orphan_file' -m 0 -d "$WORK/root" "$1"
}

install_boot_loader() {
    timeout 300 qemu-system-x86_64 -accel tcg -machine pc -cpu qemu64 -m 256 -nodefaults -no-reboot \
        -display none -serial "file:$WORK/console" -kernel "$OUT/vmlinuz" -initrd "$WORK/installer" \
        -append "console=ttyS0 quiet panic=-1 duranova.install" \
        -drive "file=$1,format=raw,if=virtio" || die "the installing machine did not end"
    grep -q DURANOVA-INSTALLED "$WORK/console" ||
        die "installing the boot loader failed: $(tail -n 5 "$WORK/console")"
}

main() {
    local stamp=$OUT/inputs want kernel
    exec 8<"$OUT"
    flock 8 # tests that start together share one build
    want=$(inputs)
    if [ -f "$OUT/tiny.qcow2" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return
    fi
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    kernel=$(kernel_package)
    [ -n "$kernel" ] || die "apt knows no cloud kernel; run apt-get update"
    echo "guest: building $OUT/tiny.qcow2 with $kernel"
    fetch_packages "$kernel"
    BUSYBOX=$(find "$WORK/x" -type f -path '*bin/busybox')
    LIBRARIES=$(find "$WORK/x" -type d -path '*lib/x86_64-linux-gnu' | paste -sd:)
    install -m 644 "$(find "$WORK/x/boot" -name 'vmlinuz-*' | head -n 1)" "$OUT/vmlinuz"
    KERNEL=$(basename "$WORK"/x/boot/vmlinuz-* | sed s/vmlinuz-//)
    TREE=$WORK/x
    [ -d "$TREE/lib/modules" ] || TREE=$WORK/x/usr
    depmod -b "$TREE" "$KERNEL"
    make_initrd
    make_root
    make_disk "$WORK/tiny.raw"
    install_boot_loader "$WORK/tiny.raw"
    qemu-img convert -f raw -O qcow2 "$WORK/tiny.raw" "$WORK/tiny.qcow2"
    # names appear only when they are whole; the stamp comes last
    cp --sparse=always "$WORK/tiny.raw" "$OUT/tiny.raw.new" && mv "$OUT/tiny.raw.new" "$OUT/tiny.raw"
    cp "$WORK/tiny.qcow2" "$OUT/tiny.qcow2.new" && mv "$OUT/tiny.qcow2.new" "$OUT/tiny.qcow2"
    echo "$want" >"$stamp"
}

main
