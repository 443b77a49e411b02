# The steps of /etc/rcS. Under emulation each process costs milliseconds, so they start few.
PATH=/bin:/sbin:/usr/bin:/usr/sbin
export PATH
service=http://169.254.169.254/openstack/latest
config=
source=none

uptime_s() { read -r up _ </proc/uptime && echo "$up"; }

address_of() { # the first IPv4 address of a device
    ip -4 -o addr show "$1" 2>/dev/null | awk '{sub("/.*", "", $4); print $4; exit}'
}

start_services() {
    for module in button evdev virtio_balloon virtio_console i6300esb; do modprobe "$module"; done
    acpid
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name")" = org.qemu.guest_agent.0 ] || continue
        port=${name%/name}
        mkdir -p /run/qga
        qemu-ga -d -m virtio-serial -p "/dev/${port##*/}" -t /run/qga -f /run/qga.pid
    done
    dropbear -R -B
    exec uevent /etc/hotplug
}

find_config_drive() { # an ISO 9660 file system with volume id config-2, on a disk or a CD
    modprobe ata_piix; modprobe ahci; modprobe sr_mod
    for disk in /dev/vd? /dev/sr? /dev/sd?; do
        [ -b "$disk" ] || continue
        case $(dd if="$disk" bs=1 skip=32808 count=8 2>/dev/null) in
            [Cc][Oo][Nn][Ff][Ii][Gg]-2) ;;
            *) continue ;;
        esac
        modprobe isofs
        mount -t iso9660 -o ro "$disk" /run/config && config=/run/config/openstack/latest && return
    done
} 2>/dev/null

configure_network() {
    for nic in /sys/class/net/eth*; do
        [ -e "$nic" ] || continue
        udhcpc -i "${nic##*/}" -n -q -t 8 -T 1 -A 1 -S -s /etc/udhcpc/script \
            -x hostname:"$(hostname)"
    done
} >/dev/null 2>&1

fetch() { # URL FILE; the wget of some busybox versions crashes with its own -T, hence timeout
    timeout 5 wget -q -O "$2" "$1" 2>/dev/null || { rm -f "$2"; false; }
}

read_metadata() { # sets source; leaves /run/meta_data.json and perhaps /run/user_data
    if [ -n "$config" ] && cp "$config/meta_data.json" /run/meta_data.json 2>/dev/null; then
        cp "$config/user_data" /run/user_data 2>/dev/null
        source=configdrive
        return
    fi
    [ -n "$(ip -4 route show 2>/dev/null)" ] || return
    for try in 1 2 3; do
        if fetch $service/meta_data.json /run/meta_data.json; then
            fetch $service/user_data /run/user_data
            source=http
            return
        fi
        usleep 500000
    done
}

said() { # the text value of a top-level key in the metadata
    tr ',{}' '\n\n\n' </run/meta_data.json | sed -n 's/^[[:space:]]*"'"$1"'":[[:space:]]*"\(.*\)".*/\1/p' | head -n 1
}

apply_metadata() {
    name=$(said hostname)
    if [ -n "$name" ]; then
        hostname "$name"
        echo "$name" >/etc/hostname
    fi
    tr ',{}' '\n\n\n' </run/meta_data.json | sed 's/\\n//g' |
        sed -n 's/.*"\(ssh-[a-z0-9-]* [^"]*\|ecdsa-[^"]*\|sk-[^"]*\)".*/\1/p' |
        awk '!seen[$0]++' >/root/.ssh/authorized_keys
    id=$(said uuid)
    password=$(said admin_pass)
    if [ -n "$password" ] && [ "$(cat /etc/instance-id 2>/dev/null)" != "$id" ]; then
        echo "root:$password" | chpasswd
    fi
}

run_user_data() { # a script runs once per instance, as cloud-init does it; anything else is left alone
    [ "$(cat /etc/instance-id 2>/dev/null)" = "$id" ] && return
    echo "$id" >/etc/instance-id
    [ -s /run/user_data ] && [ "$(head -c 2 /run/user_data)" = '#!' ] || return
    chmod 700 /run/user_data
    /run/user_data >/dev/console 2>&1
}

grow_root() { # when the disk has more than 16 MiB that the file system does not use
    disk=$(awk '$2 == "/" && $3 == "ext4" {print $1; exit}' /proc/mounts)
    has=$(($(cat "/sys/class/block/${disk##*/}/size") / 2))
    uses=$(df -k / | awk 'NR == 2 {print $2}')
    [ "$has" -gt $((uses + 16384)) ] && resize2fs "$disk"
}
