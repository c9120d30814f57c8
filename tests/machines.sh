#!/usr/bin/env bash
# Machines within this one, to try cluster.yaml on without others: `tests/machines.sh COUNT FOLDER`, as root, until Ctrl-C.
#
# Machine N has an address (10.77.0.1N), processes, a /tmp and files of its own: it sees this machine's, and what it changes
# stays in FOLDER. It lets the user `ubuntu` in with FOLDER/key, has FOLDER/shared as /shared, and knows 10.77.0.1, which is this
# machine, as `mlflow` too. Kill its first process (the number is printed) to switch it off; a minute later it is on again.
# Needs Linux, iproute2, iptables, openssh-server and rsync. Not here: a second processor, or a network that loses anything.
set -euo pipefail

count=${1:?how many machines} folder=$(realpath -m "${2:?a folder for what they change}")
mkdir -p "$folder/shared"
chmod 1777 "$folder/shared"
[ -f "$folder/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/key"

forwards=$(cat /proc/sys/net/ipv4/ip_forward)
nat=(POSTROUTING -s 10.77.0.0/24 '!' -d 10.77.0.0/24 -j MASQUERADE)
end() {
    trap - EXIT
    kill $(jobs -p) 2>/dev/null || true
    for n in $(seq "$count"); do off "$n"; done
    iptables -t nat -D "${nat[@]}"
    echo "$forwards" > /proc/sys/net/ipv4/ip_forward
    ip link del machines
}

off() {
    ip netns pids "machine$1" 2>/dev/null | xargs -r kill -9
    ip link del "machine$1" 2>/dev/null || true
    ip netns del "machine$1" 2>/dev/null || true
}

on() {
    local n=$1 own=$folder/machine$1
    mkdir -p "$own"/{changes,work,root,tmp}
    chmod 1777 "$own/tmp"
    ip netns add "machine$n"
    ip link add "machine$n" type veth peer name eth0 netns "machine$n"
    ip link set "machine$n" master machines up
    ip -n "machine$n" link set lo up
    ip -n "machine$n" addr add "10.77.0.1$n/24" dev eth0
    ip -n "machine$n" link set eth0 up
    ip -n "machine$n" route add default via 10.77.0.1
    ip netns exec "machine$n" unshare --pid --fork --uts --ipc --mount --kill-child bash -euc '
        n=$1 folder=$2 own=$3
        mount --make-rprivate /
        mount -t overlay machine -o "lowerdir=/,upperdir=$own/changes,workdir=$own/work" "$own/root"
        cd "$own/root"
        mkdir -p shared before
        mount -t proc proc proc
        mount -t sysfs sysfs sys
        mount --rbind /dev dev
        mount -t tmpfs -o mode=1777 memory dev/shm
        mount --bind "$own/tmp" tmp
        mount --bind "$folder/shared" shared
        key=$(cat "$folder/key.pub")
        pivot_root . before
        umount -l before
        hostname "machine$n"
        { echo 127.0.0.1 localhost; echo 10.77.0.1 mlflow; echo "10.77.0.1$n machine$n"; } > /etc/hosts
        id ubuntu > /dev/null 2>&1 || useradd --create-home --shell /bin/bash ubuntu
        install -d -o ubuntu -m 700 ~ubuntu/.ssh
        echo "$key" > ~ubuntu/.ssh/authorized_keys
        mkdir -p /run/sshd
        ssh-keygen -A > /dev/null
        /usr/sbin/sshd
        while :; do sleep 1000 & wait; done  # the first process, which takes leave of all others
    ' machine "$n" "$folder" "$own" &
    sleep 3
    echo "machine $n: 10.77.0.1$n, first process $(pgrep --parent $!)"
    wait $!
}

ip link add machines type bridge
trap end EXIT
trap exit INT TERM
ip addr add 10.77.0.1/24 dev machines
ip link set machines up
iptables -t nat -A "${nat[@]}"
echo 1 > /proc/sys/net/ipv4/ip_forward
for n in $(seq "$count"); do
    while :; do
        on "$n" || true
        off "$n"
        sleep 60
    done &
done
echo "the user's key: $folder/key; the shared folder: $folder/shared"
wait
