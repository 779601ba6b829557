#!/usr/bin/env bash
# Runs a Flower app on a SuperLink and SuperNodes, real processes of this machine, and ends them.
#
#   examples/deployment/deploy.sh [--tls] [--nodes N] APP [options of `flwr run`]
#
# Without --tls nothing is encrypted and any SuperNode is let in: for a try on one machine only.
# With --tls certificates and keys are made, traffic is encrypted, and only SuperNodes whose keys
# were registered are let in: how it is done between machines (see the README beside this file).
set -euo pipefail

tls= nodes=2
while [[ ${1-} == --* ]]; do
    case $1 in
        --tls) tls=1 ;;
        --nodes) nodes=$2; shift ;;
        *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
    shift
done
app=${1:?the folder of an app is missing}; shift

work=$(mktemp -d)
pids=()
finish() {
    trap - EXIT INT TERM
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

export FLWR_HOME=$work/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
# Apps run in the environment this script runs in; nothing is installed, or downloaded.
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
mkdir "$FLWR_HOME"

free_ports() {
    python3 - "$1" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
}

make_certificates() {
    openssl req -x509 -newkey rsa:3072 -nodes -days 1 -subj "/CN=example authority" \
        -keyout authority.key -out authority.crt
    openssl req -newkey rsa:3072 -nodes -subj "/CN=localhost" -keyout server.key -out server.csr
    openssl x509 -req -days 1 -in server.csr -CA authority.crt -CAkey authority.key \
        -CAcreateserial -out server.crt \
        -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1")
    chmod 600 ./*.key
}

wait_for() {  # a URL
    for _ in $(seq 300); do
        python3 - "$1" <<'PYTHON' && return
import ssl, sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=1, context=ssl._create_unverified_context())
except Exception:
    sys.exit(1)
PYTHON
        sleep 0.2
    done
    echo "error: $1 does not come up" >&2
    cat "$work"/*.log >&2
    exit 1
}

read -r -a ports < <(free_ports $((nodes + 1)))
link=127.0.0.1:${ports[0]}
if [[ $tls ]]; then
    (cd "$work" && make_certificates) >/dev/null 2>&1
    server=(--ssl-ca-certfile "$work/authority.crt" --ssl-certfile "$work/server.crt"
            --ssl-keyfile "$work/server.key" --enable-supernode-auth)
    client=(--root-certificates "$work/authority.crt")
    connection="root-certificates = \"$work/authority.crt\""
    scheme=https
else
    server=(--insecure) client=(--insecure) connection="insecure = true" scheme=http
fi
printf '[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\naddress = "%s"\n%s\n' \
    "$link" "$connection" >"$FLWR_HOME/config.toml"

flower-superlink "${server[@]}" --host 127.0.0.1 --port "${ports[0]}" >"$work/superlink.log" 2>&1 &
pids+=($!)
wait_for "$scheme://$link/health"

for ((node = 0; node < nodes; node++)); do
    own=()
    if [[ $tls ]]; then
        ssh-keygen -q -t ecdsa -b 384 -N "" -f "$work/node-$node"
        flwr supernode register "$work/node-$node.pub" deployment >"$work/register-$node.log"
        own=(--auth-supernode-private-key "$work/node-$node")
    fi
    flower-supernode "${client[@]}" "${own[@]}" --superlink "$link" --port "${ports[node + 1]}" \
        --node-config "partition-id=$node num-partitions=$nodes" >"$work/supernode-$node.log" 2>&1 &
    pids+=($!)
done

if ! timeout "${DEPLOY_TIMEOUT:-600}" flwr run "$app" deployment --stream "$@"; then
    cat "$work"/*.log >&2
    exit 1
fi
# `flwr run` succeeds when a run could be started; how it ended is asked for here.
flwr list deployment --limit 1 --format json >"$work/runs.json"
grep -q '"finished:completed"' "$work/runs.json" || { cat "$work"/*.log "$work/runs.json" >&2; exit 1; }
