# A network with IPv6 alone: four hosts, each in a network namespace of its own, and the commands of the README.
# Runs as root of a user namespace that owns all of it; $1 has the programs, $2 is an empty folder.
set -eu
programs=$1
folder=$2
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link set lo up
ip link add name switch type bridge
ip link set switch up

number=0
for host in manager scheduler one two; do
    number=$((number + 1))
    ip netns add $host
    ip link add name to-$host type veth peer name uplink netns $host
    ip link set to-$host master switch up
    ip -n $host link set lo up
    ip -n $host link set uplink up
    ip -n $host address add fd00:df::$number/64 dev uplink nodad
    mkdir -p "$folder/$host/run" "$folder/$host/lib"
    printf '127.0.0.1 localhost\n::1 localhost\nfd00:df::1 manager.example\n' > "$folder/$host/hosts"
    # Nobody needs a name server.
    : > "$folder/$host/resolv.conf"
done

# The rest of the arguments, on the host $1.
on() {
    host=$1
    shift
    nsenter --net=/run/netns/$host unshare --mount sh -euc '
        mount --bind "$1/hosts" /etc/hosts
        [ ! -e /etc/resolv.conf ] || mount --bind "$1/resolv.conf" /etc/resolv.conf
        mount --bind "$1/lib" /var/lib
        mount --bind "$1/run" /run
        shift
        exec "$@"' sh "$folder/$host" env -i PATH="$programs:$PATH" "$@"
}

# Until the command succeeds; at most a minute.
until_done() {
    tries=0
    until "$@" > "$folder/last" 2>&1; do
        tries=$((tries + 1))
        if [ $tries -ge 240 ]; then
            cat "$folder/last" "$folder"/*.log
            exit 1
        fi
        sleep 0.25
    done
}

on manager dfmanager --join-advertise /dns/manager.example/tcp/4402 > "$folder/manager.log" 2>&1 &
until_done on manager dfmanager --check-ready
scheduler=$(on manager dfmanager join-token scheduler --uses 3)
node=$(on manager dfmanager join-token node --uses 100 --ttl 1day)
on scheduler dfscheduler --join "$scheduler" > "$folder/scheduler.log" 2>&1 &
on one dfdaemon --join "$node" --upload-rate-limit 200MiB/s > "$folder/one.log" 2>&1 &
on two dfdaemon --join "$node" > "$folder/two.log" 2>&1 &
until_done on one dfcache health
until_done on two dfcache health

head -c 3000000 /dev/urandom > "$folder/one/run/model.bin"
on one dfcache import -i models/7b -t v2 /run/model.bin
on two dfcache export -i models/7b -t v2 /run/copy.bin
cmp "$folder/one/run/model.bin" "$folder/two/run/copy.bin"
echo "the same bytes over IPv6"
